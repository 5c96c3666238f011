"""Whether a sequence gets the codes of its lone run: in company, elsewhere, later, in any bucket.

A bucket is the number of slots that a step computes. Each target, a seeded sequence at temperature
1.3, runs alone, and then in each bucket three times, always with the bucket full for as long as it
runs: in the first slot, where it starts together with its companions; in the last slot, together
with other companions; and in the last slot, late, where all companions are running before it comes
and so it starts by itself. `bench.decode --reproducible` prints how many targets get equal codes,
those with a prompt apart from those without, since a prompt is decoded together with those of the
sequences that start at the same time.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.subject import Subject, build_engine, random_prompt, text_of
from bench.table import show
from worker.engine.engine import Engine
from worker.engine.sequence import SamplingParams, Sequence

LEAD = 40  # steps that companions take before a target that comes late
PROMPTS = (0, 100)  # frames; sequences have the one and the other in turn


@dataclass
class Runs:
    """The codes of every target [T, C] in one bucket."""

    first: list[Tensor] = field(default_factory=list)  # in the first slot
    elsewhere: list[Tensor] = field(default_factory=list)  # in the last, other companions
    late: list[Tensor] = field(default_factory=list)  # in the last, once those were running

    def those_with(self, prompt: int) -> Runs:
        """The runs of the targets with a prompt of that length."""
        first, step = PROMPTS.index(prompt), len(PROMPTS)
        return Runs(self.first[first::step], self.elsewhere[first::step], self.late[first::step])


class Trial:
    """Runs targets in company."""

    def __init__(self, engine: Engine, frames: int) -> None:
        self._engine, self._frames = engine, frames
        self._channels = engine.config.decoder.channels

    def run(
        self, target: int, width: int, company: int = 0, slot: int = 0, lead: int = 0
    ) -> Tensor:
        """The codes of one target.

        Args:
            target: number of the target.
            width: slots that run, the target's own among them.
            company: number of the set of companions.
            slot: of the target, where its companions take the others.
            lead: steps that the companions of the slots before take before it comes.
        """
        engine, wanted = self._engine, self._sequence(target, 0)
        others = [
            self._sequence(1000 * (company + 1) + 50 * target + index, lead)
            for index in range(width - 1)
        ]
        for other in others[:slot]:
            engine.add(other)
        for _ in range(lead):
            engine.step()
        for sequence in (wanted, *others[slot:]):
            engine.add(sequence)
        while wanted.codes is None:
            assert wanted.failure is None, "the model gave no numbers"
            engine.step()
        engine.clear()
        return wanted.codes

    def _sequence(self, number: int, lead: int) -> Sequence:
        """A sequence like no other; a companion lasts longer than the target does."""
        prompt = random_prompt(PROMPTS[number % 2], self._channels, seed=number)
        longer = lead + 2 * self._engine.config.max_delay if number >= 1000 else 0
        text = text_of(40 + 37 * number % 200)
        return Sequence(text, prompt, self._frames + longer, SamplingParams(seed=number))


def measure_reproducibility(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Counts, for each bucket and each pair of buckets, the targets with equal codes."""
    widths = sorted({1, *options.slots})
    shapes = options.same_shapes
    engine = build_engine(subject.model, max(widths), options.graphs, options.fused, shapes)
    trial = Trial(engine, options.frames)
    found = {width: _runs(trial, width, options.targets) for width in widths}
    rows = [
        _row(width, prompt, found[width].those_with(prompt), found[1].those_with(prompt))
        for width in widths
        for prompt in PROMPTS
    ]
    title = f"{subject.name} on {subject.device}, temperature {SamplingParams().temperature}"
    show(f"{title}: targets that get the codes", rows)
    pairs = [_pairs(width, found) for width in widths]
    show(f"{title}: targets of {options.targets} that get equal codes in two buckets", pairs)
    return {
        "targets": options.targets,
        "frames": options.frames,
        "temperature": SamplingParams().temperature,
        "rows": rows,
        "equal_by_bucket_pair": pairs,
    }


def _runs(trial: Trial, width: int, targets: int) -> Runs:
    runs, last = Runs(), width - 1
    lead = LEAD if width > 1 else 0
    for target in range(targets):
        runs.first.append(trial.run(target, width))
        runs.elsewhere.append(trial.run(target, width, company=1, slot=last))
        runs.late.append(trial.run(target, width, company=1, slot=last, lead=lead))
    return runs


def _row(width: int, prompt: int, runs: Runs, alone: Runs) -> dict[str, Any]:
    parted = [
        _first_difference(one, other)
        for one, other in zip(alone.first, runs.first, strict=True)
        if not torch.equal(one, other)
    ]
    return {
        "bucket": width,
        "prompt_frames": prompt,
        "targets": len(runs.first),
        "of_the_lone_run": _equal(runs.first, alone.first),
        "of_the_lone_run_when_late": _equal(runs.late, alone.first),
        "of_its_bucket_elsewhere": _equal(runs.elsewhere, runs.first),
        "of_its_bucket_when_late": _equal(runs.late, runs.first),
        "median_first_frame_that_differs": statistics.median(parted) if parted else None,
    }


def _pairs(width: int, found: dict[int, Runs]) -> dict[str, int]:
    """How many are equal to those of every bucket; its own are those of the other slot."""
    mine = found[width]
    counts = {
        f"and_{other}": _equal(mine.first, runs.elsewhere if other == width else runs.first)
        for other, runs in found.items()
    }
    return {"bucket": width, **counts}


def _equal(some: list[Tensor], others: list[Tensor]) -> int:
    return sum(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _first_difference(one: Tensor, other: Tensor) -> int:
    """Index of the first frame in which they differ."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(1).nonzero()
    return int(differs[0]) if len(differs) else length

"""Stage 2: speaks the sentences, on all cores, into shards of recordings.

Shard 2n is hibari's, shard 2n + 1 joe's; every block of lines is spoken by one of them, and after
all blocks, by the other. A shard that is already there is kept. Sentences that training must not
see come first, so that they are there however short the time.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from builder.train_tiny.config import DATA, FEMALE, HELD_OUT, MALE, TOOLS, TRAIN
from builder.train_tiny.recordings import Recording, has_shard, write_shard
from builder.train_tiny.sound import level, to_int16, trim
from builder.train_tiny.speakers import Voice, voices
from builder.train_tiny.tools import Line, read_lines

logger = logging.getLogger(__name__)

BLOCK = 48  # sentences of a shard
SHORTEST_S = 0.4  # what is shorter failed to be spoken
SMOKE_LINES = 12
_SMOKE_WORDS = "the small lamp over a quiet harbor turns slowly tonight again".split()  # noqa: SIM905


@dataclass(frozen=True)
class Task:
    """One shard to make."""

    number: int
    speaker: str
    lines: list[Line]
    folder: Path


def tasks(lines: list[Line], folder: Path) -> list[Task]:
    """All shards, in the order in which they are made."""
    # Sorting is stable: only what is kept from training moves, to the front.
    ordered = sorted(lines, key=lambda line: line.use == TRAIN)
    blocks = [ordered[start : start + BLOCK] for start in range(0, len(ordered), BLOCK)]
    speakers = (FEMALE, MALE)
    return [
        Task(turn * len(blocks) + index, speakers[(index + turn) % 2], block, folder)
        for turn in range(2)
        for index, block in enumerate(blocks)
    ]


_voices: dict[str, Voice] = {}  # of a worker process


def _start_worker(tools: Path | None) -> None:
    _voices.update(voices(tools))


def _make(task: Task) -> float:
    """Makes one shard; returns its seconds."""
    return write_shard(task.folder, task.number, _speak(task, _voices[task.speaker]))


def _speak(task: Task, voice: Voice) -> Iterator[Recording]:
    for index, line in enumerate(task.lines):
        chance = np.random.default_rng([task.number, index])
        sound = level(trim(voice.say(line, chance), voice.rate))
        if len(sound) > SHORTEST_S * voice.rate:
            yield Recording(line.text, voice.name, voice.rate, line.use, to_int16(sound))


def make_data(
    lines: list[Line], tools: Path | None, folder: Path, minutes: float, processes: int
) -> float:
    """Makes the shards that are missing until time is up; returns the hours made."""
    folder.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks(lines, folder) if not has_shard(folder, task.number)]
    started, seconds = time.monotonic(), 0.0
    if processes == 1:
        _start_worker(tools)
        for task in todo:
            seconds += _make(task)
        return seconds / 3600
    with get_context("spawn").Pool(processes, _start_worker, (tools,)) as pool:
        for count, made in enumerate(pool.imap_unordered(_make, todo), 1):
            seconds += made
            spent = time.monotonic() - started
            if count % 50 == 0:
                logger.info("%d shards, %.2f h in %.0f s", count, seconds / 3600, spent)
            if spent > minutes * 60:
                break
    spent = time.monotonic() - started
    logger.info("made %.2f h in %.0f s: %.0f × realtime", seconds / 3600, spent, seconds / spent)
    return seconds / 3600


def smoke_lines() -> list[Line]:
    """A few sentences of a few words."""
    return [
        Line(
            " ".join(_SMOKE_WORDS[(index * 3 + word) % 11] for word in range(3)) + ".",
            HELD_OUT if index < 2 else TRAIN,
            "",
            [],
        )
        for index in range(SMOKE_LINES)
    ]


def main() -> None:
    """Makes the data."""
    parser = argparse.ArgumentParser(description="speaks the sentences")
    parser.add_argument("--tools", type=Path, default=TOOLS)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="tones, without tools")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if arguments.smoke:
        make_data(smoke_lines(), None, arguments.out, arguments.minutes, 1)
    else:
        lines = read_lines(arguments.tools)
        make_data(lines, arguments.tools, arguments.out, arguments.minutes, arguments.processes)


if __name__ == "__main__":
    main()

"""A job's chunks on the engine: which waits for which, with what prompt, which attempt counts.

Knows codes and texts. Knows nothing of waveforms, and has no words for the user.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor

from worker.dia.tokenizer import encode_text
from worker.engine.loop import EngineLoop
from worker.engine.sequence import SamplingParams, Sequence
from worker.schema import JobInput
from worker.script import Budget, PlannedChunk, Script, choose_anchors, frame_limit, text_to_read
from worker.take import Spoken, Take
from worker.text import Chunk, Turn

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # generations of a chunk that comes out too short
ATTEMPT_STRIDE = 0x9E3779B9  # between their seeds, away from those of the other chunks


@dataclass(frozen=True)
class Reference:
    """What a generation continues: a voice, and the anchors of a chunk."""

    turns: tuple[Turn, ...]
    codes: Tensor  # [P, C], P = 0 where there is nothing
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """A job, and what is settled for all its chunks before the first is generated."""

    job: JobInput
    script: Script
    reference: Reference
    seed: int
    started: float  # `time.monotonic()`
    deadline: float | None = None  # `time.monotonic()`


class Speech:
    """The generation of one job, from entering the context to leaving it.

    Each chunk runs as soon as its anchors are there; what waits for nothing runs side by side.
    Leaving frees the slots of all that is unfinished, and waits for no device.

    Attributes:
        order: what is spoken.
        tasks: one a chunk, in the order of the text.
        takes: their frames; while they come where the speech is live, else all at the end.
    """

    def __init__(
        self,
        engine: EngineLoop,
        budget: Budget,
        order: Order,
        on_frames: Callable[[int], None] | None = None,
        live: bool = False,
    ) -> None:
        """Prepares a speech; nothing runs yet.

        Args:
            engine: takes the sequences.
            budget: of one generation.
            order: what to speak.
            on_frames: called from the engine's thread with the number of new frames.
            live: whether `takes` get frames before their chunk is finished.
        """
        self.order = order
        self.takes = [Take() for _ in order.script.chunks]
        self.tasks: list[asyncio.Task[Spoken]] = []
        self._engine, self._budget = engine, budget
        self._on_frames, self._live = on_frames, live
        self._futures: set[Future[Sequence]] = set()  # of the engine, unfinished
        self._key = object()  # by which the engine knows the job's sequences

    async def __aenter__(self) -> Speech:
        logger.info("%d chunks to speak", len(self.takes))
        for planned, take in zip(self.order.script.chunks, self.takes, strict=True):
            task = asyncio.create_task(self._speak(planned, take))
            task.add_done_callback(take.end)
            self.tasks.append(task)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await end_all(self.tasks)
        if kind is not None:
            _log_release(self._futures)

    async def _speak(self, planned: PlannedChunk, take: Take) -> Spoken:
        try:
            # Shielded: a chunk that is ended must not end those that it waits for.
            anchors = [await asyncio.shield(self.tasks[index]) for index in planned.anchors]
            prompt, unheard = self._prompt(planned, anchors)
            spoken = await self._speak_one(planned.chunk, prompt, take)
            return replace(spoken, unheard=unheard)
        except Exception:
            for task in self.tasks[planned.chunk.index + 1 :]:
                task.cancel()  # nobody will hear what comes after a gap
            raise

    def _prompt(
        self, planned: PlannedChunk, anchors: Iterable[Spoken]
    ) -> tuple[Reference, tuple[Spoken, ...]]:
        """The job's voice and the anchors that fit beside it; the anchors that do not."""
        reference = self.order.reference
        heard = {anchor.chunk.index: anchor for anchor in anchors}
        kept = choose_anchors(
            planned.chunk,
            {index: (anchor.chunk, anchor.frames) for index, anchor in heard.items()},
            self._budget,
            reference.turns,
            reference.codes.shape[0],
        )
        turns = [turn for index in kept for turn in heard[index].chunk.turns]
        codes = [heard[index].codes for index in kept]
        prompt = Reference((*reference.turns, *turns), torch.cat([reference.codes, *codes]))
        return prompt, tuple(heard[index] for index in planned.anchors if index not in kept)

    async def _speak_one(self, chunk: Chunk, prompt: Reference, take: Take) -> Spoken:
        """Generates one chunk; again with other seeds where words must be missing, as long as
        nothing of it was heard. The longest attempt counts."""
        request = self._request(chunk, prompt)
        best: Spoken | None = None
        for seed in self._seeds(chunk):
            on_codes = take.attempt(best.frames if best else 0) if self._live else None
            sequence = request(params=self._params(seed), on_codes=on_codes)
            spoken = _outcome(chunk, await self._generate(sequence))
            if best is None or spoken.frames > best.frames:
                best = spoken
            if take.begun or not spoken.lacks_words:
                break
        assert best is not None
        return best

    def _request(self, chunk: Chunk, prompt: Reference) -> Callable[..., Sequence]:
        """What the attempts at a chunk have in common."""
        room = self._budget.max_frames - prompt.codes.shape[0]
        text = text_to_read(prompt.turns, chunk.turns)
        return partial(
            Sequence,
            text_ids=encode_text(text, self._budget.max_bytes),
            prompt=prompt.codes,
            max_new_frames=frame_limit(chunk, self.order.job.max_tokens, room),
            on_frames=self._on_frames,
            job=self._key,
            deadline=self.order.deadline,
        )

    def _seeds(self, chunk: Chunk) -> list[int]:
        """One for each attempt; at temperature 0 another would say the same."""
        attempts = 1 if self.order.job.temperature == 0 else ATTEMPTS
        first = self.order.seed + chunk.index
        return [(first + attempt * ATTEMPT_STRIDE) % 2**32 for attempt in range(attempts)]

    def _params(self, seed: int) -> SamplingParams:
        job = self.order.job
        return SamplingParams(seed, job.cfg_scale, job.temperature, job.top_p, job.cfg_filter_top_k)

    async def _generate(self, sequence: Sequence) -> Sequence:
        future = self._engine.submit(sequence)
        self._futures.add(future)
        try:
            done = await asyncio.wrap_future(future)
            self._futures.discard(future)
            return done
        finally:
            sequence.cancelled.set()  # frees its slot, if it still has one


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels what is unfinished, and hears out every exception."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_release(given_up: Iterable[Future[Sequence]]) -> None:
    """Logs, as of the job that gave them up, when the engine has let go of its sequences."""
    unfinished = [future for future in given_up if not future.done()]
    since, left, job = time.monotonic(), count(1), contextvars.copy_context()

    def let_go(_: Future[Sequence]) -> None:  # in the engine's thread
        if next(left) == len(unfinished):
            took_ms = 1000 * (time.monotonic() - since)
            job.run(logger.info, "%d chunks given up; free after %.1f ms", len(unfinished), took_ms)

    for future in unfinished:
        future.add_done_callback(let_go)
    if not unfinished:  # none was in a slot yet
        logger.info("0 chunks given up; free after 0.0 ms")


def _outcome(chunk: Chunk, sequence: Sequence) -> Spoken:
    assert sequence.codes is not None
    limit = sequence.max_new_frames
    return Spoken(chunk, sequence.codes, sequence.params.seed, sequence.ended, limit)

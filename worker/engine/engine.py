"""The engine: sequences in, finished sequences out, one step at a time.

Knows the order of things: admit, start, step, finish. Not thread-safe; `loop.py` gives it a
thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from worker.dia.model import DiaModel
from worker.engine.runner import Runner
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

SMALL_MODEL = 50_000_000  # parameters; on a CPU, waking a team of threads costs more than it brings
STEPS_BETWEEN_LOOKS = 8  # on a GPU, where looking at the progress waits for the device


class Engine:
    """Decodes up to `slots` sequences side by side."""

    def __init__(self, model: DiaModel, slots: int, release_memory: bool = True) -> None:
        self.config = model.config
        self.slots = slots
        self.runner = Runner(model, slots)
        self.scheduler = Scheduler(slots)
        on_gpu = self.runner.device.type == "cuda"
        self._release_memory = release_memory and on_gpu
        self._look_every = STEPS_BETWEEN_LOOKS if on_gpu else 1
        self._steps = 0

    @property
    def prefers_one_thread(self) -> bool:
        """Whether one CPU thread decodes faster than a team."""
        size = sum(parameter.numel() for parameter in self.runner.model.parameters())
        return self.runner.device.type == "cpu" and size < SMALL_MODEL

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence.

        Raises:
            InvalidInput: if it can never fit.
        """
        sequence.check_fits(
            self.config.decoder.max_positions,
            self.config.max_delay,
            self.config.encoder.max_positions,
        )
        self.scheduler.add(sequence)

    def step(self) -> list[Sequence]:
        """Decodes one position of every running sequence; returns those that finished.

        Sequences whose `cancelled` is set are returned too, without codes.
        """
        cancelled = self._drop_cancelled()
        for slot, sequence in self.scheduler.admit():
            self.runner.start(slot, sequence)
            sequence.steps = 0
        running = self.scheduler.running.values()
        if running:
            context = max(sequence.prompt_frames + sequence.steps for sequence in running) + 1
            widest = max(sequence.params.top_k for sequence in running)
            self.runner.step(self.scheduler.width, context, widest)
            for sequence in running:
                sequence.steps += 1
            self._steps += 1
        return cancelled + self._finish()

    def generate(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Runs sequences to their end; for callers without a loop."""
        wanted = list(sequences)
        for sequence in wanted:
            self.add(sequence)
        while self.scheduler:
            self.step()
        return wanted

    def clear(self) -> list[Sequence]:
        """Drops all sequences, after a failure; returns them."""
        slots, gone = list(self.scheduler.running), self.scheduler.clear()
        for slot in slots:
            self.runner.state.clear(slot)
        return gone

    def _drop_cancelled(self) -> list[Sequence]:
        slots = {id(sequence): slot for slot, sequence in self.scheduler.running.items()}
        dropped = self.scheduler.drop_cancelled()
        for sequence in dropped:
            if id(sequence) in slots:
                self.runner.state.clear(slots[id(sequence)])
        return dropped

    def _finish(self) -> list[Sequence]:
        if self._steps % self._look_every:
            return []
        finished = []
        width = self.scheduler.width
        for slot, (frames, done) in enumerate(self.runner.progress(width) if width else []):
            sequence = self.scheduler.running.get(slot)
            if sequence is None:
                continue
            sequence.advance(frames)
            if done:
                sequence.codes = self.runner.collect(slot)
                sequence.ended = frames < sequence.max_new_frames
                finished.append(self.scheduler.release(slot))
        if finished and self._release_memory:
            torch.cuda.empty_cache()
        return finished

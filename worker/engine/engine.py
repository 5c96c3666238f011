"""The engine: sequences in, finished sequences out, one step at a time.

Knows the order of things: admit, start, step, look, finish. Not thread-safe; `loop.py` gives it a
thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch

from worker.dia.model import DiaModel
from worker.engine.footprint import AT_ONCE, is_small
from worker.engine.kernels.ops import Ops
from worker.engine.options import DEFAULTS, EngineOptions
from worker.engine.progress import Frames, Look, SlotProgress
from worker.engine.runner import Runner
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.step import StepShape
from worker.errors import EngineError, OutOfMemory

logger = logging.getLogger(__name__)


class Engine:
    """Decodes up to `slots` sequences side by side.

    Args:
        model: with weights, on its device.
        slots: sequences at the same time.
        options: see `EngineOptions`.
        ops: the operations of a step; plain ones where none are given.
    """

    def __init__(
        self,
        model: DiaModel,
        slots: int,
        options: EngineOptions = DEFAULTS,
        ops: Ops | None = None,
    ) -> None:
        self.config = model.config
        self.slots = slots
        self.runner = Runner(model, slots, options, ops)
        self.scheduler = Scheduler(slots)
        self._window = options.steps_between_looks
        self._release_when_idle = options.release_when_idle
        self._at_once = 1 if options.same_shapes else AT_ONCE
        self._frames: dict[int, Frames] = {}  # of the running sequences, by slot
        self._look: tuple[Look, dict[int, Sequence]] | None = None  # and who ran when it was taken
        self._steps = 0

    @property
    def prefers_one_thread(self) -> bool:
        """Whether one CPU thread decodes faster than a team."""
        return self.runner.device.type == "cpu" and is_small(self.config)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence.

        Raises:
            InvalidInput: if it can never fit.
        """
        sequence.check_fits(
            self.config.decoder.max_positions,
            self.config.max_delay,
            self.config.encoder.max_positions,
            channels=self.config.decoder.channels,
            codes=self.config.eos_id,
        )
        self.scheduler.add(sequence)

    def step(self) -> list[Sequence]:
        """Decodes one position of every running sequence; returns those that are done with.

        They have finished, or were cancelled, ran out of time or failed, and then have no codes.
        """
        dropped = self._drop_unwanted() + self._admit()
        if self.scheduler.running:
            self.runner.step(self._shape())
            for sequence in self.scheduler.running.values():
                sequence.steps += 1
            self._steps += 1
        done = dropped + self._finish()
        if done and self._release_when_idle and not self.scheduler:
            self.runner.release_memory()
        return done

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
        self._look = None
        self._frames.clear()
        for slot in slots:
            self.runner.clear(slot)
        return gone

    def _shape(self) -> StepShape:
        running = self.scheduler.running.values()
        longest = max(sequence.prompt_frames + sequence.steps for sequence in running) + 1
        return StepShape(
            width=self.scheduler.width,
            context=min(longest, self.config.decoder.max_positions),
            text=max(len(sequence.text_ids) for sequence in running),
            widest=max(sequence.params.top_k for sequence in running),
        )

    def _drop_unwanted(self) -> list[Sequence]:
        if self.scheduler.running and self._steps % self._window:
            return []  # the host has less to do than a GPU, but not nothing
        slots = {id(sequence): slot for slot, sequence in self.scheduler.running.items()}
        dropped = self.scheduler.drop_unwanted(time.monotonic())
        for sequence in dropped:
            if id(sequence) in slots:
                self._free(slots[id(sequence)])
        return dropped

    def _admit(self) -> list[Sequence]:
        """Fills free slots; returns the sequences that could not start."""
        failed: list[Sequence] = []
        while admitted := self.scheduler.admit(self._at_once):
            for slot, sequence in admitted:
                sequence.steps = 0
                self._frames[slot] = Frames(
                    self.config, sequence.prompt_frames, sequence.max_new_frames
                )
            if not self._started(admitted):
                logger.warning("out of memory starting %d chunks; one by one then", len(admitted))
                failed += [each for one in admitted if (each := self._start_alone(*one))]
        return failed

    def _started(self, admitted: list[tuple[int, Sequence]]) -> bool:
        """Starts sequences in one pass, or none of them where the device has no memory for it."""
        try:
            self.runner.start(admitted)
        except torch.OutOfMemoryError:
            return False
        return True

    def _start_alone(self, slot: int, sequence: Sequence) -> Sequence | None:
        """Starts one sequence after freeing what can be freed; returns it where that fails too."""
        self.runner.release_memory()
        if self._started([(slot, sequence)]):
            return None
        sequence.failure = OutOfMemory("the device has no memory left for this job")
        self._free(slot)
        return self.scheduler.release(slot)

    def _finish(self) -> list[Sequence]:
        """Looks at the slots when it is time; returns the sequences that are done with."""
        if self._steps % self._window:
            return []
        late = self._window > 1
        done = self._read_look() if late else []
        if self.scheduler.running:
            look = self.runner.look(self.scheduler.width, self._window)
            self._look = look, dict(self.scheduler.running)
        return done if late else self._read_look()

    def _read_look(self) -> list[Sequence]:
        if self._look is None:
            return []
        (look, then), self._look = self._look, None
        done = []
        for slot, progress in enumerate(look.read()):
            sequence = then.get(slot)
            if sequence is None or sequence is not self.scheduler.running.get(slot):
                continue
            if self._advance(slot, progress):
                done.append(self.scheduler.release(slot))
                self._free(slot)
        return done

    def _advance(self, slot: int, progress: SlotProgress) -> bool:
        """Takes in what a look has found of a slot; whether its sequence is done with."""
        sequence, frames = self.scheduler.running[slot], self._frames[slot]
        if progress.broken:
            sequence.failure = EngineError("the model gave no numbers; another seed may mend it")
            return True
        frames.push(progress)
        new = frames.take()
        sequence.deliver(new)
        sequence.advance(sequence.frames + len(new))
        if frames.finished:
            sequence.codes = frames.all()
            sequence.ended = len(sequence.codes) < sequence.max_new_frames
        return frames.finished

    def _free(self, slot: int) -> None:
        del self._frames[slot]
        self.runner.clear(slot)

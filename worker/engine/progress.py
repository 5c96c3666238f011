"""What the host learns of the slots, without the device ever waiting for it.

A look starts a copy of the slots' recent past to the host; its answer is read at the next look,
when it has long arrived. On a CPU there is nothing to wait for, and it is read at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.dia.delay import undelay
from worker.engine.state import NEVER, SlotState


@dataclass(frozen=True)
class SlotProgress:
    """How far one slot had come when the look was taken."""

    position: int
    end: int  # position of EOS in channel 0, or `NEVER`
    broken: bool
    recent: Tensor  # [window, C] delayed codes up to `position`


class Look:
    """A copy of `SlotState.recent` on its way to the host."""

    def __init__(self, state: SlotState, width: int, window: int) -> None:
        found = state.recent(width, window)
        self._window = window
        self._arrived: torch.cuda.Event | None = None
        self._found = found
        if found.is_cuda:
            self._found = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._found.copy_(found, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[SlotProgress]:
        """The slots' progress; waits until the copy has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        facts = self._found[:, :3].tolist()
        recent = self._found[:, 3:].view(len(facts), self._window, -1)
        return [
            SlotProgress(position, end, bool(broken), codes)
            for (position, end, broken), codes in zip(facts, recent, strict=True)
        ]


class Frames:
    """The new frames of one sequence, from its delayed codes as they come.

    Args:
        config: delays and ids.
        start: position at which decoding started, the prompt's frames.
        longest: new frames at most.
    """

    def __init__(self, config: DiaConfig, start: int, longest: int) -> None:
        self._config, self._start = config, start
        rows = longest + config.max_delay
        self._rows = torch.empty(rows, config.decoder.channels, dtype=torch.int64)
        self._known = 0  # rows, from position start + 1 on
        self._taken = 0  # frames
        self.end: int | None = None  # frames in all, once known
        self.finished = False

    def push(self, progress: SlotProgress) -> None:
        """Takes what a look has found."""
        new = progress.position - self._start - self._known
        if new:
            self._rows[self._known : self._known + new] = progress.recent[-new:]
            self._known += new
        if progress.end != NEVER:
            self.end = progress.end - self._start - 1
            self.finished = self._known >= self.end + self._config.max_delay

    def take(self) -> Tensor:
        """[t, C] the frames that have become complete since the last call."""
        ready = self._known - self._config.max_delay
        if self.end is not None:
            ready = min(ready, self.end)
        first, self._taken = self._taken, max(self._taken, ready)
        return self._frames(first, self._taken)

    def all(self) -> Tensor:
        """[T, C] every frame of a finished sequence."""
        assert self.finished and self.end is not None
        return self._frames(0, self.end)

    def _frames(self, first: int, last: int) -> Tensor:
        return undelay(self._rows, self._config.delays, first, last, codes=self._config.eos_id)

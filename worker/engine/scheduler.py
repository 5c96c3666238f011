"""Which sequence decodes in which slot. First come, first served.

Knows queues and slot numbers; no tensors. Slots are handed out from the lowest number, so the
running ones stay close to the front and a step computes only up to the last of them.
"""

from __future__ import annotations

from collections import deque

from worker.engine.sequence import Sequence


class Scheduler:
    """Waiting sequences, and the slots of the running ones."""

    def __init__(self, slots: int) -> None:
        assert slots >= 1
        self._waiting: deque[Sequence] = deque()
        self._free = sorted(range(slots), reverse=True)  # the lowest is last
        self.running: dict[int, Sequence] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self.running)

    @property
    def width(self) -> int:
        """Slots that a step must compute: all up to the last running one."""
        return max(self.running, default=-1) + 1

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence at the end of the queue."""
        self._waiting.append(sequence)

    def admit(self) -> list[tuple[int, Sequence]]:
        """Gives free slots to those who wait longest."""
        admitted = []
        while self._free and self._waiting:
            slot = self._free.pop()
            self.running[slot] = self._waiting.popleft()
            admitted.append((slot, self.running[slot]))
        return admitted

    def release(self, slot: int) -> Sequence:
        """Takes a slot back from its sequence."""
        sequence = self.running.pop(slot)
        self._free.append(slot)
        self._free.sort(reverse=True)
        return sequence

    def drop_cancelled(self) -> list[Sequence]:
        """Removes cancelled sequences from the queue and from their slots."""
        waiting = [sequence for sequence in self._waiting if sequence.cancelled.is_set()]
        for sequence in waiting:
            self._waiting.remove(sequence)
        slots = [slot for slot, sequence in self.running.items() if sequence.cancelled.is_set()]
        return waiting + [self.release(slot) for slot in slots]

    def clear(self) -> list[Sequence]:
        """Removes everything, waiting or running."""
        gone = list(self._waiting) + [self.release(slot) for slot in list(self.running)]
        self._waiting.clear()
        return gone

"""Which sequence decodes in which slot: jobs take turns, and nobody waits for ever.

Knows queues and slot numbers; no tensors and no clock. Slots are handed out from the lowest
number, so the running ones stay close to the front and a step computes only up to the last of them.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import count

from worker.engine.sequence import Sequence

PATIENCE_PER_SLOT = 2  # of 8 slots' admissions, 1 in 17 is for whoever has waited longest


@dataclass(eq=False)
class _Job:
    """Sequences that were asked for together."""

    key: Hashable
    waiting: OrderedDict[int, Sequence] = field(default_factory=OrderedDict)  # by ticket
    running: int = 0


class Scheduler:
    """Waiting sequences, and the slots of the running ones.

    A free slot goes to the job of which the fewest sequences run; among equals, to the one that has
    had so few for the longest time. Within a job, sequences start in the order in which they came.
    But whoever has waited longest is passed at most `patience` times, then it is their turn.

    Counted in admissions, with p = `patience` this guarantees:

    - A job of which nothing runs gets a slot by admission m + m // p + 2, where m is the number of
      other such jobs that stood in line before it; how many sequences they have does not matter.
      For each of them goes once and then stands behind it, and between two turns of the longest
      waiting lie p turns of the line.
    - A sequence with n waiting sequences before it, of all jobs, gets a slot by admission
      (n + 1) · (p + 1), whatever comes after it. For of any p + 1 admissions, one is of the
      sequence that has waited longest.

    Jobs of one sequence each are served in the order in which they came. To add, admit or
    release a sequence takes no longer when more are waiting.
    """

    def __init__(self, slots: int, patience: int | None = None) -> None:
        """Makes an empty scheduler.

        Args:
            slots: sequences that may run at once.
            patience: how often others may pass the sequence that has waited longest, since it is
                the one; twice the number of slots where it is not given.
        """
        self._patience = PATIENCE_PER_SLOT * slots if patience is None else patience
        assert slots >= 1
        assert self._patience >= 1
        self.running: dict[int, Sequence] = {}
        self._free = list(range(slots))  # a heap
        self._next_ticket = count()  # tickets are numbered in order of arrival
        # Ordered dictionaries are queues that let go of any member in constant time.
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()  # by ticket
        self._jobs: dict[Hashable, _Job] = {}  # those with anything waiting or running
        # Jobs with something waiting, by the number of their running sequences.
        self._lines: list[OrderedDict[_Job, None]] = [OrderedDict() for _ in range(slots + 1)]
        self._longest_waiting = -1  # its ticket
        self._passed = 0  # how often others got a slot since it is the longest waiting

    def __bool__(self) -> bool:
        return bool(self._waiting or self.running)

    @property
    def width(self) -> int:
        """Slots that a step must compute: all up to the last running one."""
        return max(self.running, default=-1) + 1

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence behind the others of its job, and a new job at the end of its line."""
        ticket = next(self._next_ticket)
        self._waiting[ticket] = sequence
        job = self._job_of(sequence)
        job.waiting[ticket] = sequence
        self._stand_in_line(job)

    def admit(self, limit: int | None = None) -> list[tuple[int, Sequence]]:
        """Gives free slots to waiting sequences.

        Args:
            limit: admits at most so many; as many as there are free slots where it is not given.

        Returns:
            Slots and their new sequences, in the order in which they were chosen.
        """
        admitted: list[tuple[int, Sequence]] = []
        while self._free and self._waiting and len(admitted) != limit:
            sequence, slot = self._take_next(), heapq.heappop(self._free)
            self.running[slot] = sequence
            self._count_running(self._job_of(sequence), 1)
            admitted.append((slot, sequence))
        return admitted

    def release(self, slot: int) -> Sequence:
        """Takes a slot back from its sequence."""
        sequence = self.running.pop(slot)
        heapq.heappush(self._free, slot)
        self._count_running(self._job_of(sequence), -1)
        return sequence

    def drop_unwanted(self, now: float) -> list[Sequence]:
        """Removes sequences that were cancelled or whose deadline has passed.

        Args:
            now: `time.monotonic()`, seconds.

        Returns:
            The waiting ones, then the running ones. `expired` is set on those that were not
            cancelled.
        """
        gone = [ticket for ticket, each in self._waiting.items() if each.is_unwanted(now)]
        dropped = [self._leave_queue(ticket) for ticket in gone]
        slots = [slot for slot, each in self.running.items() if each.is_unwanted(now)]
        return dropped + [self.release(slot) for slot in slots]

    def clear(self) -> list[Sequence]:
        """Removes everything, waiting or running."""
        gone = [self._leave_queue(ticket) for ticket in list(self._waiting)]
        return gone + [self.release(slot) for slot in list(self.running)]

    def _take_next(self) -> Sequence:
        """Takes the sequence whose turn it is out of the queue."""
        longest_waiting = next(iter(self._waiting))
        if longest_waiting != self._longest_waiting:
            self._longest_waiting, self._passed = longest_waiting, 0
        ticket = longest_waiting
        if self._passed < self._patience:
            job = next(iter(next(line for line in self._lines if line)))
            ticket = next(iter(job.waiting))
        self._passed += 1  # begins anew where it was the longest waiting itself
        return self._leave_queue(ticket)

    def _leave_queue(self, ticket: int) -> Sequence:
        sequence = self._waiting.pop(ticket)
        job = self._job_of(sequence)
        del job.waiting[ticket]
        self._stand_in_line(job)
        return sequence

    def _job_of(self, sequence: Sequence) -> _Job:
        key = sequence if sequence.job is None else sequence.job
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job(key)
        return job

    def _count_running(self, job: _Job, change: int) -> None:
        """Moves a job to the end of the line of those that have as many running."""
        self._lines[job.running].pop(job, None)
        job.running += change
        self._stand_in_line(job)

    def _stand_in_line(self, job: _Job) -> None:
        """Lets a job stand in its line, where it keeps its place, for as long as it waits."""
        line = self._lines[job.running]
        if job.waiting:
            line.setdefault(job)
            return
        line.pop(job, None)
        if not job.running:
            del self._jobs[job.key]

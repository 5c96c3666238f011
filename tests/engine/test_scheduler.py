"""The scheduler: queues and slot numbers, against simple invariants."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

NO_PROMPT = torch.zeros(0, 3, dtype=torch.long)


def sequence() -> Sequence:
    return Sequence([1], NO_PROMPT, max_new_frames=1)


def test_the_longest_waiting_gets_the_lowest_free_slot() -> None:
    scheduler, (a, b, c) = Scheduler(2), (sequence() for _ in range(3))
    for each in (a, b, c):
        scheduler.add(each)
    assert scheduler.admit() == [(0, a), (1, b)]
    assert scheduler.admit() == []
    assert scheduler.release(0) is a
    assert scheduler.admit() == [(0, c)]


def test_a_step_computes_no_slot_behind_the_last_running_one() -> None:
    scheduler = Scheduler(3)
    assert scheduler.width == 0
    for _ in range(3):
        scheduler.add(sequence())
    scheduler.admit()
    assert scheduler.width == 3
    scheduler.release(1)
    assert scheduler.width == 3
    scheduler.release(2)
    assert scheduler.width == 1


def test_cancelled_sequences_leave_the_queue_and_their_slots() -> None:
    scheduler, (a, b, c, d) = Scheduler(2), (sequence() for _ in range(4))
    for each in (a, b, c, d):
        scheduler.add(each)
    scheduler.admit()
    b.cancelled.set()
    c.cancelled.set()
    assert scheduler.drop_cancelled() == [c, b]
    assert scheduler.admit() == [(1, d)]
    assert scheduler.running == {0: a, 1: d}


def test_clearing_returns_everything_once() -> None:
    scheduler, all_of_them = Scheduler(2), [sequence() for _ in range(4)]
    for each in all_of_them:
        scheduler.add(each)
    scheduler.admit()
    assert sorted(map(id, scheduler.clear())) == sorted(map(id, all_of_them))
    assert not scheduler
    assert scheduler.clear() == []
    scheduler.add(all_of_them[0])
    assert scheduler.admit() == [(0, all_of_them[0])]


class AnyOrderOfEvents(RuleBasedStateMachine):
    """A model of the scheduler: a list of those who wait, and a dictionary of those who run."""

    @initialize(slots=st.integers(1, 4))
    def start(self, slots: int) -> None:
        self.slots, self.scheduler = slots, Scheduler(slots)
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}

    @rule()
    def add(self) -> None:
        new = sequence()
        self.waiting.append(new)
        self.scheduler.add(new)

    @rule()
    def admit(self) -> None:
        wanted = []
        for slot in range(self.slots):
            if slot not in self.running and self.waiting:
                self.running[slot] = self.waiting.pop(0)
                wanted.append((slot, self.running[slot]))
        assert self.scheduler.admit() == wanted

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.running)))
        assert self.scheduler.release(slot) is self.running.pop(slot)

    @rule(data=st.data())
    def cancel_some(self, data: st.DataObject) -> None:
        everyone = [*self.waiting, *self.running.values()]
        gone = [each for each in everyone if data.draw(st.booleans())]
        for each in gone:
            each.cancelled.set()
        assert set(map(id, self.scheduler.drop_cancelled())) == set(map(id, gone))
        self.waiting = [each for each in self.waiting if each not in gone]
        self.running = {slot: each for slot, each in self.running.items() if each not in gone}

    @rule()
    def clear(self) -> None:
        self.scheduler.clear()
        self.waiting, self.running = [], {}

    @invariant()
    def agrees(self) -> None:
        assert self.scheduler.running == self.running
        assert bool(self.scheduler) == bool(self.waiting or self.running)
        assert self.scheduler.width == max(self.running, default=-1) + 1


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)

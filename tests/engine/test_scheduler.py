"""The scheduler: whose turn it is, against a slow and simple version, and what it promises."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Hashable
from itertools import count

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.engine.scheduler import PATIENCE_PER_SLOT, Scheduler
from worker.engine.sequence import Sequence

NO_PROMPT = torch.zeros(0, 3, dtype=torch.long)
NOW = 100.0  # seconds; the scheduler has no clock of its own


def sequence(job: Hashable = None, deadline: float | None = None) -> Sequence:
    return Sequence([1], NO_PROMPT, max_new_frames=1, job=job, deadline=deadline)


def queued(scheduler: Scheduler, *jobs: Hashable) -> list[Sequence]:
    """Adds one sequence of each of these jobs."""
    sequences = [sequence(job) for job in jobs]
    for each in sequences:
        scheduler.add(each)
    return sequences


def served(scheduler: Scheduler, turns: int) -> list[Hashable]:
    """The jobs of the next sequences, where each is done before the next is admitted."""
    jobs: list[Hashable] = []
    for _ in range(turns):
        for slot, each in scheduler.admit(1):
            jobs.append(each.job)
            scheduler.release(slot)
    return jobs


def test_jobs_of_one_sequence_are_served_in_the_order_in_which_they_came() -> None:
    scheduler = Scheduler(2)
    a, b, c = queued(scheduler, None, None, None)
    assert scheduler.admit() == [(0, a), (1, b)]
    assert scheduler.admit() == []
    assert scheduler.release(0) is a
    assert scheduler.admit() == [(0, c)]


def test_a_step_computes_no_slot_behind_the_last_running_one() -> None:
    scheduler = Scheduler(3)
    assert scheduler.width == 0
    queued(scheduler, None, None, None)
    scheduler.admit()
    assert scheduler.width == 3
    scheduler.release(1)
    assert scheduler.width == 3
    scheduler.release(2)
    assert scheduler.width == 1


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_the_first_chunk_of_a_later_job_gets_the_next_slot_before_fifty_chunks_of_another(
    slots: int,
) -> None:
    scheduler = Scheduler(slots)
    queued(scheduler, *["long"] * 50)
    scheduler.admit()
    (late,) = queued(scheduler, "late")
    scheduler.release(0)
    assert scheduler.admit() == [(0, late)]


def test_a_third_job_need_not_wait_for_two_long_ones_that_take_turns() -> None:
    scheduler = Scheduler(1)
    queued(scheduler, *["a"] * 50, *["b"] * 50)
    assert served(scheduler, 4) == ["a", "b", "a", "b"]
    queued(scheduler, "c")
    assert served(scheduler, 4) == ["a", "b", "c", "a"]


def test_a_job_that_asks_for_more_keeps_its_place() -> None:
    scheduler = Scheduler(1)
    queued(scheduler, "a", "b", "a")
    assert served(scheduler, 3) == ["a", "b", "a"]


def test_jobs_share_the_slots_evenly() -> None:
    scheduler = Scheduler(6)
    queued(scheduler, *["a"] * 50, *["b"] * 50, *["c"] * 50)
    running = [each.job for _, each in scheduler.admit()]
    assert sorted(running) == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("slots", [2, 8])
def test_a_long_job_goes_on_while_new_jobs_never_cease_to_come(slots: int) -> None:
    scheduler = Scheduler(slots)
    long = queued(scheduler, "long", "long")
    (first,) = scheduler.admit(1)
    assert first[1] is long[0]  # and runs to the end of this test
    patience = PATIENCE_PER_SLOT * slots
    queued(scheduler, *range(10 * patience))
    assert served(scheduler, patience + 1) == [*range(patience), "long"]


def test_the_engine_may_ask_for_fewer_than_there_are_free_slots() -> None:
    scheduler = Scheduler(4)
    a, b, c = queued(scheduler, None, None, None)
    assert scheduler.admit(0) == []
    assert scheduler.admit(2) == [(0, a), (1, b)]
    assert scheduler.admit(2) == [(2, c)]


def test_cancelled_sequences_leave_the_queue_and_their_slots() -> None:
    scheduler = Scheduler(2)
    a, b, c, d = queued(scheduler, None, None, None, None)
    scheduler.admit()
    b.cancelled.set()
    c.cancelled.set()
    assert scheduler.drop_unwanted(NOW) == [c, b]
    assert not b.expired
    assert scheduler.admit() == [(1, d)]
    assert scheduler.running == {0: a, 1: d}


def test_sequences_past_their_deadline_leave_the_queue_and_their_slots_and_say_why() -> None:
    scheduler = Scheduler(2)
    late, in_time, too_late = (sequence(deadline=NOW + seconds) for seconds in (-1, 1, -1))
    for each in (late, in_time, too_late):
        scheduler.add(each)
    scheduler.admit()
    assert scheduler.drop_unwanted(NOW) == [too_late, late]
    assert [each.expired for each in (late, in_time, too_late)] == [True, False, True]
    assert scheduler.running == {1: in_time}


def test_clearing_returns_everything_once() -> None:
    scheduler = Scheduler(2)
    everything = queued(scheduler, "a", "a", None, "b")
    scheduler.admit()
    assert set(scheduler.clear()) == set(everything)
    assert not scheduler
    assert scheduler.clear() == []
    scheduler.add(everything[0])
    assert scheduler.admit() == [(0, everything[0])]


def test_nothing_is_remembered_of_a_job_that_is_done() -> None:
    scheduler, job = Scheduler(1), threading.Event()  # anything with an identity
    queued(scheduler, job, job)
    assert served(scheduler, 2) == [job, job]
    remembered = weakref.ref(job)
    del job
    gc.collect()
    assert remembered() is None


def job_of(each: Sequence) -> Hashable:
    return each if each.job is None else each.job


class SlowScheduler:
    """The same policy, written as it is told, with a look at everyone for every decision."""

    def __init__(self, slots: int, patience: int) -> None:
        self.slots, self.patience = slots, patience
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        self.lined_up: dict[Hashable, int] = {}  # when a job came to its line
        self.passed: dict[Sequence, int] = {}  # times that the longest waiting was passed
        self.clock = count()

    def count_running(self, job: Hashable) -> int:
        return sum(job_of(each) == job for each in self.running.values())

    def add(self, new: Sequence) -> None:
        if job_of(new) not in map(job_of, self.waiting):
            self.lined_up[job_of(new)] = next(self.clock)
        self.waiting.append(new)

    def admit(self, limit: int) -> list[tuple[int, Sequence]]:
        admitted = []
        while self.waiting and len(self.running) < self.slots and limit:
            chosen = self.choose()
            slot = min(set(range(self.slots)) - set(self.running))
            self.running[slot] = chosen
            self.lined_up[job_of(chosen)] = next(self.clock)
            admitted.append((slot, chosen))
            limit -= 1
        return admitted

    def choose(self) -> Sequence:
        longest = chosen = self.waiting[0]
        if self.passed.get(longest, 0) < self.patience:
            jobs = {job_of(each) for each in self.waiting}
            job = min(jobs, key=lambda job: (self.count_running(job), self.lined_up[job]))
            chosen = next(each for each in self.waiting if job_of(each) == job)
        if chosen is not longest:
            self.passed[longest] = self.passed.get(longest, 0) + 1
        self.waiting.remove(chosen)
        return chosen

    def release(self, slot: int) -> Sequence:
        each = self.running.pop(slot)
        self.lined_up[job_of(each)] = next(self.clock)
        return each

    def drop(self, gone: set[Sequence]) -> None:
        self.waiting = [each for each in self.waiting if each not in gone]
        for slot in [slot for slot, each in self.running.items() if each in gone]:
            self.release(slot)


class Promises:
    """Counts admissions, and complains where somebody waits longer than was promised."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.admissions = 0
        self.sequences: dict[Sequence, int] = {}  # the admission by which each is served
        self.jobs: dict[Hashable, int] = {}  # the same for jobs of which nothing runs

    def look(self, waiting: list[Sequence], running: list[Sequence]) -> None:
        """Notes who has begun to wait."""
        for ahead, each in enumerate(waiting):
            latest = self.admissions + (ahead + 1) * (self.patience + 1)
            self.sequences[each] = min(latest, self.sequences.get(each, latest))
        idle = {job_of(each) for each in waiting} - {job_of(each) for each in running}
        latest = self.admissions + len(idle) - 1 + (len(idle) - 1) // self.patience + 2
        self.jobs = {job: self.jobs.get(job, latest) for job in idle}
        assert all(self.admissions < self.sequences[each] for each in waiting)
        assert all(self.admissions < due for due in self.jobs.values())

    def admitted(self, each: Sequence) -> None:
        self.admissions += 1
        assert self.admissions <= self.sequences[each]
        assert self.admissions <= self.jobs.pop(job_of(each), self.admissions)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Arrivals, ends, failures to start, cancellations and deadlines in any order."""

    @initialize(slots=st.integers(1, 4), patience=st.integers(1, 5))
    def start(self, slots: int, patience: int) -> None:
        self.scheduler = Scheduler(slots, patience)
        self.slow = SlowScheduler(slots, patience)
        self.promises = Promises(patience)
        self.now = NOW

    @rule(
        job=st.sampled_from([None, "a", "b", "c"]),
        many=st.integers(1, 6),
        deadline=st.none() | st.integers(0, 5),
    )
    def add(self, job: Hashable, many: int, deadline: int | None) -> None:
        for _ in range(many):
            new = sequence(job, None if deadline is None else self.now + deadline)
            self.slow.add(new)
            self.scheduler.add(new)

    @rule(limit=st.none() | st.integers(0, 3))
    def admit(self, limit: int | None) -> None:
        admitted = self.scheduler.admit(limit)
        for slot, each in admitted:
            assert self.slow.admit(1) == [(slot, each)]
            self.promises.admitted(each)
            self.promises.look(self.slow.waiting, list(self.slow.running.values()))
        if limit is None or len(admitted) < limit:
            assert self.slow.admit(1) == []

    @precondition(lambda self: self.slow.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slow.running)))
        each = self.slow.release(slot)
        assert self.scheduler.release(slot) is each

    @rule(data=st.data(), seconds=st.integers(0, 3))
    def drop(self, data: st.DataObject, seconds: int) -> None:
        self.now += seconds
        cancelled = {each for each in self.everyone if data.draw(st.booleans())}
        late = {each for each in self.everyone if each.deadline and each.deadline < self.now}
        for each in cancelled:
            each.cancelled.set()
        dropped = self.scheduler.drop_unwanted(self.now)
        assert len(dropped) == len(set(dropped))
        assert set(dropped) == cancelled | late
        assert {each for each in dropped if each.expired} == late - cancelled
        self.slow.drop(cancelled | late)

    @rule()
    def clear(self) -> None:
        assert sorted(map(id, self.scheduler.clear())) == sorted(map(id, self.everyone))
        self.slow.drop(set(self.everyone))

    @property
    def everyone(self) -> list[Sequence]:
        return [*self.slow.waiting, *self.slow.running.values()]

    @invariant()
    def agrees(self) -> None:
        assert self.scheduler.running == self.slow.running
        assert bool(self.scheduler) == bool(self.everyone)
        assert self.scheduler.width == max(self.slow.running, default=-1) + 1
        self.promises.look(self.slow.waiting, list(self.slow.running.values()))

    def teardown(self) -> None:
        """Whoever is left is served, once, and each job in the order in which it came."""
        left = self.everyone
        order = [self.scheduler.release(slot) for slot in list(self.scheduler.running)]
        while self.scheduler:
            for slot, each in self.scheduler.admit():
                order.append(each)
                self.scheduler.release(slot)
        assert sorted(map(id, order)) == sorted(map(id, left))
        for job in {job_of(each) for each in self.slow.waiting}:
            waited = [each for each in self.slow.waiting if job_of(each) == job]
            assert [each for each in order if each in waited] == waited


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(deadline=None, max_examples=100, stateful_step_count=40)

"""Failures on the engine's thread, with an engine that has no model."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import ClassVar, cast

import pytest
import torch
from torch import Tensor

from tests.engine.loops import PATIENCE, assert_answers_with, request
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.errors import EngineBroken, EngineError, JobCancelled, JobTimeout, OutOfMemory

NO_CODES = torch.zeros(0, 3, dtype=torch.long)


class FakeEngine:
    """Gives whoever runs one frame a step, and fails when it is told to."""

    prefers_one_thread = False

    def __init__(self) -> None:
        self.runner = SimpleNamespace(device=torch.device("cpu"))
        self.scheduler = Scheduler(2)
        self.open = threading.Event()  # no step before
        self.awaited = 0  # no step before so many sequences were added
        self.failures: list[Exception] = []  # of the next steps
        self.failures_to_add: list[Exception] = []
        self.failure_to_clear: Exception | None = None

    def add(self, sequence: Sequence) -> None:
        if self.failures_to_add:
            raise self.failures_to_add.pop()
        self.awaited -= 1
        self.scheduler.add(sequence)

    def step(self) -> list[Sequence]:
        assert self.open.wait(PATIENCE)
        if self.awaited > 0:
            return []
        dropped = self.scheduler.drop_unwanted(time.monotonic())
        self.scheduler.admit()
        done = [slot for slot in list(self.scheduler.running) if self.finish(slot)]
        released = [self.scheduler.release(slot) for slot in done]
        self.fail()
        return dropped + released

    def finish(self, slot: int) -> bool:
        sequence = self.scheduler.running[slot]
        sequence.deliver(NO_CODES.new_zeros(1, 3))
        sequence.advance(sequence.frames + 1)
        if sequence.frames == sequence.max_new_frames:
            sequence.codes = NO_CODES
        return sequence.codes is not None

    def fail(self) -> None:
        if self.failures:
            large = Activations()  # noqa: F841, stays alive with this frame
            raise self.failures.pop(0)

    def clear(self) -> list[Sequence]:
        if self.failure_to_clear is not None:
            raise self.failure_to_clear
        return self.scheduler.clear()


class Activations:
    """Counts how many of it are alive."""

    alive: ClassVar[weakref.WeakSet[Activations]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def fake_loop(fake: FakeEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(cast(Engine, fake))
    yield loop
    fake.open.set()
    loop.close()


def assert_serves(loop: EngineLoop) -> None:
    assert loop.submit(request()).result(PATIENCE).codes is not None
    assert loop.broken is None


def fail_in_one_step(
    loop: EngineLoop, fake: FakeEngine, failure: Exception
) -> list[Future[Sequence]]:
    """One that finishes in the step that fails, one that runs, two that wait."""
    fake.failures, fake.awaited = [failure], 4
    fake.open.set()
    return [loop.submit(request(new=new)) for new in (1, 9, 9, 9)]


def cuda_error(text: str) -> Exception:
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    return kind(f"CUDA error: {text}\nat /home/someone/secret.cpp")


ILLEGAL = "CUDA error: an illegal memory access was encountered"
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    cuda_error("out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
LOST = [
    (cuda_error("an illegal memory access was encountered"), ILLEGAL),
    (RuntimeError(f"{ILLEGAL}\nat /home/x.cpp"), ILLEGAL),
    (cuda_error("device-side assert triggered"), "CUDA error: device-side assert triggered"),
    (RuntimeError("CUDA driver error: device not ready"), "CUDA driver error: device not ready"),
]


@pytest.mark.parametrize("failure", OUT_OF_MEMORY)
def test_without_memory_every_sequence_is_told_so_and_the_loop_goes_on(
    fake: FakeEngine, fake_loop: EngineLoop, failure: Exception
) -> None:
    for future in fail_in_one_step(fake_loop, fake, failure):
        error = assert_answers_with(future, OutOfMemory)
        assert isinstance(error, OutOfMemory)
        assert error.retryable
        assert "GiB" not in str(error)
        assert error.__cause__ is failure
    assert not fake.scheduler
    assert_serves(fake_loop)


@pytest.mark.parametrize(("failure", "reason"), LOST)
def test_a_lost_device_fails_everyone_and_every_later_job_at_once(
    fake: FakeEngine, fake_loop: EngineLoop, failure: Exception, reason: str
) -> None:
    for future in fail_in_one_step(fake_loop, fake, failure):
        error = assert_answers_with(future, EngineBroken)
        assert isinstance(error, EngineBroken)
        assert error.retryable
        assert reason in str(error)
        assert fake_loop.broken == f"the device failed: {reason}"  # before anyone is answered
    with pytest.raises(EngineBroken, match="must be replaced"):
        fake_loop.submit(request())
    fake_loop.close()
    with pytest.raises(EngineBroken):  # rather than closed: another worker is needed
        fake_loop.submit(request())


def test_an_engine_that_cannot_be_emptied_after_a_failure_is_broken(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    fake.failure_to_clear = ValueError("of /home/someone")
    for future in fail_in_one_step(fake_loop, fake, RuntimeError("a bug")):
        assert_answers_with(future, EngineBroken)
    assert fake_loop.broken == "the engine could not go on after ValueError"
    with pytest.raises(EngineBroken):
        fake_loop.submit(request())


@pytest.mark.parametrize(
    "failure", [RuntimeError("shapes differ"), ZeroDivisionError(), KeyError(1)]
)
def test_any_other_failure_is_told_to_those_in_the_engine_alone(
    fake: FakeEngine, fake_loop: EngineLoop, failure: Exception
) -> None:
    for future in fail_in_one_step(fake_loop, fake, failure):
        error = assert_answers_with(future, EngineError)
        assert type(error) is EngineError
        assert error.__cause__ is failure
    assert_serves(fake_loop)


def test_a_thread_that_cannot_begin_leaves_no_one_waiting(fake: FakeEngine) -> None:
    del fake.runner
    loop = EngineLoop(cast(Engine, fake))
    loop.close()
    assert loop.broken == "the engine could not go on after AttributeError"
    with pytest.raises(EngineBroken):
        loop.submit(request())


def test_each_caller_gets_an_error_of_its_own(fake: FakeEngine, fake_loop: EngineLoop) -> None:
    futures = fail_in_one_step(fake_loop, fake, RuntimeError("a bug"))
    errors = {id(future.exception(PATIENCE)) for future in futures}
    assert len(errors) == len(futures)  # raising an error changes it


def test_an_error_that_is_kept_keeps_no_tensors_of_the_step_that_failed(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    kept = [
        assert_answers_with(future, OutOfMemory)
        for future in fail_in_one_step(fake_loop, fake, torch.OutOfMemoryError("no room"))
    ]
    gc.collect()
    assert not Activations.alive
    assert all(error.__cause__ is not None for error in kept)


def test_a_sequence_that_cannot_be_queued_fails_alone(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    fake.failures_to_add = [TypeError("a list where a tensor should be")]
    futures = [fake_loop.submit(request()) for _ in range(3)]
    fake.open.set()
    error = assert_answers_with(futures[0], EngineError)
    assert isinstance(error.__cause__, TypeError)
    for future in futures[1:]:
        assert future.result(PATIENCE).codes is not None


@pytest.mark.parametrize("last", [False, True])
def test_one_who_receives_codes_and_fails_ends_that_sequence_alone(
    fake: FakeEngine, fake_loop: EngineLoop, last: bool
) -> None:
    def fail(_: Tensor) -> None:
        raise failure

    failure, streamed = ConnectionError("gone"), request(new=1 if last else 5)
    streamed.on_codes = fail
    futures = [fake_loop.submit(each) for each in (streamed, request())]
    fake.open.set()
    error = assert_answers_with(futures[0], EngineError)
    assert error.__cause__ is failure
    assert futures[1].result(PATIENCE).codes is not None


def test_what_the_engine_says_of_one_sequence_is_what_its_caller_hears(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    failed = request()
    failed.failure = EngineError("the model gave no numbers")
    future = fake_loop.submit(failed)
    fake.open.set()
    assert assert_answers_with(future, EngineError) is failed.failure


def test_a_sequence_that_waits_or_runs_past_its_deadline_is_told_so(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    in_time, late = request(), request(new=10**9)
    in_time.deadline = time.monotonic() + 1000 * PATIENCE
    too_late = [late, request(), request()]
    running = threading.Event()
    late.on_frames = lambda _: running.set()
    futures = [fake_loop.submit(late)]
    fake.open.set()
    assert running.wait(PATIENCE)
    for each in too_late:
        each.deadline = time.monotonic() - 1
    futures += [fake_loop.submit(each) for each in too_late[1:]]
    served = fake_loop.submit(in_time)
    for future in futures:
        error = assert_answers_with(future, JobTimeout)
        assert isinstance(error, JobTimeout)
        assert error.code == "timeout"
        assert error.retryable
    assert served.result(PATIENCE).codes is not None


def test_a_sequence_cancelled_after_its_deadline_is_told_that_it_was_cancelled(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    unwanted = request()
    unwanted.deadline = time.monotonic() - 1
    unwanted.cancelled.set()
    future = fake_loop.submit(unwanted)
    fake.open.set()
    assert_answers_with(future, JobCancelled)


def test_a_job_that_comes_while_the_engine_breaks_is_not_forgotten(
    fake: FakeEngine, fake_loop: EngineLoop
) -> None:
    first, futures = request(new=9), []
    first.on_frames = lambda _: futures.append(fake_loop.submit(request()))
    fake.failures = [cuda_error("unspecified launch failure")]
    fake.open.set()
    assert_answers_with(fake_loop.submit(first), EngineBroken)
    (second,) = futures
    assert_answers_with(second, EngineBroken)

"""The engine's thread: futures are always answered, and one failure is not the last word."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import Tensor

from tests.models import random_codes, small_model
from worker.dia.config import Generation
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import SamplingParams, Sequence
from worker.errors import (
    EngineBroken,
    EngineError,
    InvalidInput,
    JobCancelled,
    JobTimeout,
    OutOfMemory,
)

NO_CODES = torch.zeros(0, 3, dtype=torch.long)
PATIENCE = 60  # seconds until a test gives up on an answer

Step = Callable[..., None]


def request(seed: int = 1, new: int = 6) -> Sequence:
    prompt = random_codes(seed % 3, 3, seed)
    return Sequence(encode_text("[S1] Hi."), prompt, new, SamplingParams(seed))


def long_request(seed: int = 1) -> Sequence:
    return request(seed, new=150)


def alone(sequence: Sequence) -> Tensor:
    (done,) = Engine(small_model(Generation.JUNE), slots=1).generate([sequence])
    assert done.codes is not None
    return done.codes


@pytest.fixture
def engine() -> Engine:
    return Engine(small_model(Generation.JUNE), slots=2)


@pytest.fixture
def loop(engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    yield loop
    loop.close()


class Gate:
    """Stands before the runner's step: holds it, counts it, and lets it fail."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.open = threading.Event()
        self.reached = threading.Event()
        self._steps_left = -1
        self._failure = RuntimeError()

    def fail_in(self, steps: int, failure: RuntimeError) -> None:
        """Lets the step with this number, counted from now, fail."""
        self._steps_left, self._failure = steps, failure

    def __call__(self, *args: Any) -> None:
        self.reached.set()
        assert self.open.wait(PATIENCE)
        self._steps_left -= 1
        if self._steps_left == 0:
            raise self._failure
        self._step(*args)


@pytest.fixture
def gate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(engine.runner.step)
    monkeypatch.setattr(engine.runner, "step", gate)
    yield gate
    gate.open.set()


def assert_answers_with(future: Future[Sequence], error: type[Exception]) -> Exception:
    with pytest.raises(error) as caught:
        future.result(PATIENCE)
    return caught.value


def test_a_sequence_comes_back_with_its_codes(loop: EngineLoop) -> None:
    sequence = request()
    assert loop.submit(sequence).result(PATIENCE) is sequence
    assert sequence.codes is not None
    assert torch.equal(sequence.codes, alone(request()))


def test_sequences_from_many_threads_are_all_answered_with_their_own_codes(
    loop: EngineLoop,
) -> None:
    futures: dict[int, Future[Sequence]] = {}

    def send(seed: int) -> None:
        futures[seed] = loop.submit(request(seed, new=3 + seed))

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, future in futures.items():
        codes = future.result(PATIENCE).codes
        assert codes is not None
        assert torch.equal(codes, alone(request(seed, new=3 + seed)))


def test_sequences_that_wait_together_share_the_batch(loop: EngineLoop, gate: Gate) -> None:
    first = loop.submit(long_request())
    assert gate.reached.wait(PATIENCE)
    second = loop.submit(request())
    order: list[Future[Sequence]] = []
    for future in (first, second):
        future.add_done_callback(order.append)
    gate.open.set()
    first.result(PATIENCE)
    assert order == [second, first]  # the short one was not behind the long one


def test_a_sequence_that_can_never_fit_is_refused_and_the_others_are_served(
    loop: EngineLoop,
) -> None:
    refused, served = loop.submit(request(new=10_000)), loop.submit(request())
    error = assert_answers_with(refused, InvalidInput)
    assert "max_tokens is 10000" in str(error)
    assert served.result(PATIENCE).codes is not None


def test_a_cancelled_sequence_answers_and_leaves_its_slot(
    loop: EngineLoop, engine: Engine, gate: Gate
) -> None:
    cancelled, waiting = long_request(), [request(seed) for seed in range(3)]
    future = loop.submit(cancelled)
    assert gate.reached.wait(PATIENCE)
    cancelled.cancelled.set()
    others = [loop.submit(sequence) for sequence in waiting]
    gate.open.set()
    assert_answers_with(future, JobCancelled)
    assert cancelled.codes is None
    assert cancelled.frames < 150
    for other in others:
        assert other.result(PATIENCE).codes is not None
    assert not engine.scheduler.running


def test_a_future_cancelled_before_the_engine_saw_it_is_never_generated(
    loop: EngineLoop, gate: Gate
) -> None:
    first = loop.submit(request())
    assert gate.reached.wait(PATIENCE)
    unwanted = request(2)
    assert loop.submit(unwanted).cancel()
    gate.open.set()
    first.result(PATIENCE)
    loop.submit(request()).result(PATIENCE)
    assert unwanted.steps == 0


def test_a_failing_step_answers_everyone_and_later_jobs_are_served(
    loop: EngineLoop, engine: Engine, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [loop.submit(long_request(seed)) for seed in range(5)]  # two run, three wait
    gate.fail_in(2, RuntimeError("out of memory"))  # by then all have arrived
    gate.open.set()
    for future in futures:
        error = assert_answers_with(future, EngineError)
        assert "out of memory" not in str(error)  # jobs are not told what the log is told
        assert str(error.__cause__) == "out of memory"
    assert "out of memory" in caplog.text
    codes = loop.submit(request(3)).result(PATIENCE).codes
    assert codes is not None
    assert torch.equal(codes, alone(request(3)))
    assert not engine.scheduler


def test_a_sequence_cancelled_in_the_step_that_fails_is_answered_too(
    loop: EngineLoop, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled, other = long_request(), long_request(2)

    def cancel_then_fail(*_: object) -> None:
        if cancelled.cancelled.is_set():  # already out of its slot
            raise RuntimeError("in the step after")
        if len(engine.scheduler.running) == 2:
            cancelled.cancelled.set()

    monkeypatch.setattr(engine.runner, "step", cancel_then_fail)
    for future in [loop.submit(cancelled), loop.submit(other)]:
        assert_answers_with(future, EngineError)


def test_closing_answers_what_is_unfinished_with_an_error_worth_a_retry_elsewhere(
    engine: Engine, gate: Gate
) -> None:
    loop = EngineLoop(engine)
    futures = [loop.submit(long_request(seed)) for seed in range(4)]
    assert gate.reached.wait(PATIENCE)
    closing = threading.Thread(target=loop.close)
    closing.start()
    with pytest.raises(EngineError, match="closed"):
        while True:
            futures.append(loop.submit(request()))
    gate.open.set()
    closing.join(PATIENCE)
    for future in futures:
        error = assert_answers_with(future, EngineError)
        assert "stopped" in str(error)
        assert isinstance(error, EngineError)
        assert error.retryable
    loop.close()  # a second time does no harm


def test_closing_an_idle_loop_ends_its_thread(engine: Engine) -> None:
    before = threading.active_count()
    loop = EngineLoop(engine)
    assert threading.active_count() == before + 1
    loop.close()
    assert threading.active_count() == before


def test_frames_are_reported_while_the_job_is_under_way(loop: EngineLoop) -> None:
    told: list[int] = []
    sequence = request(new=20)
    sequence.on_frames = told.append
    loop.submit(sequence).result(PATIENCE)
    assert sum(told) == sequence.frames == 20


def test_a_callback_that_fails_ends_its_own_sequence_and_not_its_neighbours(
    loop: EngineLoop, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    gone, neighbour = ConnectionError("whoever watches is gone"), request(2, new=20)

    def fail(_: int) -> None:
        raise gone

    watched = long_request()
    watched.on_frames = fail
    futures = [loop.submit(watched), loop.submit(neighbour)]
    gate.open.set()
    error = assert_answers_with(futures[0], EngineError)
    assert error.__cause__ is gone
    assert "gone" not in str(error)
    assert "whoever watches is gone" in caplog.text
    codes = futures[1].result(PATIENCE).codes
    assert codes is not None
    assert torch.equal(codes, alone(request(2, new=20)))
    assert watched.frames < 150


# --- asyncio ---


def test_a_coroutine_awaits_its_sequences_side_by_side(loop: EngineLoop) -> None:
    async def speak() -> list[Sequence]:
        return await asyncio.gather(
            *(asyncio.wrap_future(loop.submit(request(seed))) for seed in range(5))
        )

    done = asyncio.run(speak())
    for seed, sequence in enumerate(done):
        assert sequence.codes is not None
        assert torch.equal(sequence.codes, alone(request(seed)))


def test_errors_reach_the_coroutine(loop: EngineLoop) -> None:
    async def speak() -> None:
        await asyncio.wrap_future(loop.submit(request(new=10_000)))

    with pytest.raises(InvalidInput):
        asyncio.run(speak())


def test_a_cancelled_task_frees_its_slot_and_the_loop_goes_on(
    engine: Engine, loop: EngineLoop
) -> None:
    started, left = threading.Event(), threading.Event()
    sequence = long_request()

    def wait_at_the_first_frame(frames: int) -> None:
        started.set()
        assert left.wait(PATIENCE)

    sequence.on_frames = wait_at_the_first_frame

    async def speak() -> None:
        try:
            await asyncio.wrap_future(loop.submit(sequence))
        finally:
            sequence.cancelled.set()
            left.set()

    async def change_of_mind() -> Sequence:
        task = asyncio.create_task(speak())
        await asyncio.to_thread(started.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await asyncio.wrap_future(loop.submit(request()))

    assert asyncio.run(change_of_mind()).codes is not None
    assert sequence.codes is None
    assert sequence.frames < 150
    assert not engine.scheduler


def test_an_event_loop_that_is_gone_does_not_stop_the_engine(loop: EngineLoop, gate: Gate) -> None:
    async def leave() -> Future[Sequence]:
        future = loop.submit(request())
        asyncio.wrap_future(future)
        await asyncio.to_thread(gate.reached.wait, PATIENCE)
        return future

    events = asyncio.new_event_loop()
    future = events.run_until_complete(leave())
    events.close()
    gate.open.set()
    assert future.result(PATIENCE).codes is not None
    assert loop.submit(request()).result(PATIENCE).codes is not None


# --- failures, with an engine that has no model ---


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

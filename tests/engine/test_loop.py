"""The engine's thread: futures are always answered, and one failure is not the last word."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.loops import PATIENCE, assert_answers_with, long_request, request
from tests.models import small_model
from worker.dia.config import Generation
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import EngineError, InvalidInput, JobCancelled

Step = Callable[..., None]


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

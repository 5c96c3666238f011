"""The engine's thread: sequences from any thread in, futures out.

Jobs that come at the same time share the engine's batch. The thread sleeps while there is
nothing to do. Knows which failures the engine survives; does not know what replaces one that
is broken.
"""

from __future__ import annotations

import logging
import re
import threading
import traceback
from concurrent.futures import Future

import torch

from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.errors import (
    EngineBroken,
    EngineError,
    InvalidInput,
    JobCancelled,
    JobTimeout,
    OutOfMemory,
    WorkerError,
)

logger = logging.getLogger(__name__)

# What CUDA says of itself. More may follow, paths among it, which jobs are not told.
CUDA_ERROR = re.compile(r"CUDA (driver )?error: [\w -]*")
# Refused allocations that PyTorch's own allocator did not make; the device survives them.
NO_MEMORY = re.compile(r"CUDA (driver )?error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)")
DEVICE_ERROR: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())


class EngineLoop:
    """Runs an engine in a thread of its own, from construction to `close`.

    Attributes:
        broken: why this process cannot generate any more, in a few words fit for anybody's eyes;
            `None` while it can.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.broken: str | None = None
        self._changed = threading.Condition()
        self._arrived: list[tuple[Sequence, Future[Sequence]]] = []
        self._futures: dict[int, Future[Sequence]] = {}  # by id of the sequence
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> Future[Sequence]:
        """Queues a sequence.

        Returns:
            A future of the same sequence with its codes. It raises `InvalidInput` where the
            sequence can never fit, `JobCancelled` once `sequence.cancelled` was seen, `JobTimeout`
            once `sequence.deadline` has passed, `OutOfMemory` where the device had no room,
            `EngineBroken` as below, and `EngineError` where generation or a callback failed.

        Raises:
            EngineBroken: if this process cannot generate any more.
            EngineError: if the loop is closed.
        """
        future: Future[Sequence] = Future()
        with self._changed:
            if self.broken is not None:
                raise _broken(self.broken)
            if self._closed:
                raise EngineError("the engine is closed")
            self._arrived.append((sequence, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stops the thread; whatever is unfinished fails with `EngineError`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._set_up_thread()
            self._serve()
            self.engine.clear()
        except Exception as error:
            logger.exception("the engine is broken")
            self._leave(_reason(error), error)
        else:
            self._leave()

    def _set_up_thread(self) -> None:
        if self.engine.prefers_one_thread:
            torch.set_num_threads(1)  # of this thread; the codec's threads keep theirs
        device = self.engine.runner.device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread begins with the first

    def _serve(self) -> None:
        """Steps until the loop is closed; raises what the engine does not survive."""
        while self._take_arrivals():
            try:
                done = self.engine.step()
            except Exception as error:
                logger.exception("engine step failed")
                self._recover(error)
                continue
            for sequence in done:
                self._resolve(sequence)

    def _recover(self, error: Exception) -> None:
        """Empties the engine and answers everyone with what happened, or raises it again."""
        _forget_tensors(error)
        if _is_device_lost(error):
            raise error
        self.engine.clear()
        answer = EngineError("generation failed; the worker's log has the cause")
        if _is_out_of_memory(error):
            answer = OutOfMemory("the device has no memory left for this job")
        self._answer_all(answer, error)

    def _leave(self, broken: str | None = None, cause: Exception | None = None) -> None:
        """Refuses what comes from now on, and answers everyone who still waits."""
        with self._changed:
            self.broken, self._closed = broken, True
            arrived, self._arrived = self._arrived, []
        for sequence, future in arrived:
            if future.set_running_or_notify_cancel():
                self._futures[id(sequence)] = future
        stopped = EngineError("the worker stopped before the job was done")
        self._answer_all(stopped if broken is None else _broken(broken), cause)

    def _take_arrivals(self) -> bool:
        """Hands new sequences to the engine; waits for some while it is idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._arrived or self.engine.scheduler)
            arrived, self._arrived = self._arrived, []
            closed = self._closed
        for sequence, future in arrived:
            if future.set_running_or_notify_cancel():
                self._add(sequence, future)
        return not closed

    def _add(self, sequence: Sequence, future: Future[Sequence]) -> None:
        try:
            self.engine.add(sequence)
        except InvalidInput as error:
            future.set_exception(error)
        except Exception as error:
            logger.exception("a sequence could not be queued")
            future.set_exception(_engine_error("generation failed", error))
        else:
            self._futures[id(sequence)] = future

    def _resolve(self, sequence: Sequence) -> None:
        future = self._futures.pop(id(sequence))
        error = _why_it_failed(sequence)
        if error is None:
            future.set_result(sequence)
        else:
            future.set_exception(error)

    def _answer_all(self, error: EngineError, cause: Exception | None) -> None:
        # Also those whose sequence the failed step had already taken out of the engine.
        futures, self._futures = self._futures, {}
        for future in futures.values():
            own = type(error)(error.message)  # raising changes an error: each thread gets its own
            own.__cause__ = cause
            future.set_exception(own)


def _why_it_failed(sequence: Sequence) -> WorkerError | None:
    if isinstance(sequence.failure, EngineError):
        return sequence.failure
    if sequence.failure is not None:
        return _engine_error("passing on what was generated failed", sequence.failure)
    if sequence.codes is not None:
        return None
    if sequence.expired:
        return JobTimeout("the job was not done within the time it was given")
    return JobCancelled("the job was cancelled while it was generated")


def _engine_error(what: str, cause: Exception) -> EngineError:
    error = EngineError(f"{what}; the worker's log has the cause")
    error.__cause__ = cause
    return error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.match(str(error)) is not None
    )


def _is_device_lost(error: Exception) -> bool:
    """Whether every later call to the device would fail too."""
    if not isinstance(error, RuntimeError) or _is_out_of_memory(error):
        return False
    return isinstance(error, DEVICE_ERROR) or CUDA_ERROR.match(str(error)) is not None


def _reason(error: Exception) -> str:
    """What broke the engine, without paths and without anything of a job."""
    if not _is_device_lost(error):
        return f"the engine could not go on after {type(error).__name__}"
    known = CUDA_ERROR.match(str(error))
    return f"the device failed: {known[0].strip() if known else type(error).__name__}"


def _broken(reason: str) -> EngineBroken:
    return EngineBroken(f"this worker cannot generate any more and must be replaced: {reason}")


def _forget_tensors(error: BaseException | None) -> None:
    """Frees what the failed functions held: an error keeps their variables while it is kept."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__

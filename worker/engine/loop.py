"""The engine's thread: sequences from any thread in, futures out.

Jobs that come at the same time share the engine's batch. The thread sleeps while there is
nothing to do.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

import torch

from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.errors import EngineError, InvalidInput, JobCancelled

logger = logging.getLogger(__name__)


class EngineLoop:
    """Runs an engine in a thread of its own, from construction to `close`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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
            sequence can never fit, `JobCancelled` once `sequence.cancelled` was seen, and
            `EngineError` where generation failed.
        """
        future: Future[Sequence] = Future()
        with self._changed:
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
        if self.engine.prefers_one_thread:
            torch.set_num_threads(1)  # of this thread; the codec's threads keep theirs
        cause: Exception | None = None
        try:
            self._serve()
        except Exception as error:
            logger.exception("the engine cannot go on")
            cause = error
        with self._changed:
            self._closed = True
        self._take_arrivals()
        self._answer_all(cause)

    def _serve(self) -> None:
        while self._take_arrivals():
            try:
                done = self.engine.step()
            except Exception as error:
                logger.exception("engine step failed")
                self._answer_all(error)
                self.engine.clear()  # fails too where the device is lost
                continue
            for sequence in done:
                self._resolve(sequence)
        self.engine.clear()

    def _take_arrivals(self) -> bool:
        """Hands new sequences to the engine; waits for some while it is idle."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._arrived or self.engine.scheduler)
            arrived, self._arrived = self._arrived, []
            closed = self._closed
        for sequence, future in arrived:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self.engine.add(sequence)
            except InvalidInput as error:
                future.set_exception(error)
            else:
                self._futures[id(sequence)] = future
        return not closed

    def _resolve(self, sequence: Sequence) -> None:
        future = self._futures.pop(id(sequence))
        if sequence.codes is None:
            future.set_exception(JobCancelled("the job was cancelled while it was generated"))
        else:
            future.set_result(sequence)

    def _answer_all(self, cause: Exception | None) -> None:
        # Also those whose sequence the failed step had already taken out of the engine.
        futures, self._futures = self._futures, {}
        for future in futures.values():
            error = EngineError("the worker stopped before the job was done")
            if cause is not None:
                error = EngineError("generation failed; the worker's log has the cause")
                error.__cause__ = cause
            future.set_exception(error)

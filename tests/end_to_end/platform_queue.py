"""What RunPod knows of jobs: the queue, their states, and the orders to stop one.

Lives in one event loop; `control_plane` serves it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
EXECUTION_TIMEOUT_MS = 600_000  # RunPod's default


@dataclass
class Job:
    """A job as the platform keeps it. Times are `time.monotonic()`."""

    id: str
    request: Json  # input, and what was sent beside it
    created: float = field(default_factory=time.monotonic)
    status: str = "IN_QUEUE"
    worker: str | None = None
    taken: float | None = None
    finished: float | None = None
    output: Any = None
    error: Any = None
    stop_pod: bool = False
    pieces: list[Any] = field(default_factory=list)  # all that came to /stream
    read: int = 0  # of them, by the client
    results: int = 0  # posted for it

    def shown(self) -> Json:
        """What GET /status says."""
        told: Json = {"id": self.id, "status": self.status}
        if self.output is not None:
            told["output"] = self.output
        if self.error is not None:
            told["error"] = self.error
        if self.taken is not None:
            told["workerId"] = self.worker
            told["delayTime"] = round(1000 * (self.taken - self.created))
            if self.finished is not None:
                told["executionTime"] = round(1000 * (self.finished - self.taken))
        return told

    def take_result(self, body: Json) -> None:
        """Notes what a worker posted to job-done."""
        if body.get("status") == "IN_PROGRESS":
            if self.status not in ("CANCELLED", "TIMED_OUT"):
                # Also where the result is there already: that is how jobs hang on RunPod.
                self.status, self.output = "IN_PROGRESS", body["output"]
            return
        self.results += 1
        if self.status in ("CANCELLED", "TIMED_OUT"):
            return
        self.finished, self.stop_pod = time.monotonic(), bool(body.get("stopPod"))
        error = body.get("error")
        if isinstance(error, str) and error:
            self.status, self.error, self.output = "FAILED", error, body.get("output")
        else:  # anything else in `error` is not seen, and neither is the output
            self.status, self.output = "COMPLETED", None if error else body.get("output")


class Platform:
    """The jobs, and who waits for them."""

    def __init__(self, poll_s: float) -> None:
        self.poll_s = poll_s
        self.jobs: dict[str, Job] = {}
        self.paused = False  # hands out nothing
        self._queue: deque[str] = deque()
        self._stops: dict[str, list[str]] = defaultdict(list)  # by worker
        self._waiting: set[asyncio.Event] = set()

    async def queue(self, request: Json, job_id: str | None = None, sync: bool = False) -> Job:
        """Takes a client's request."""
        job = Job(job_id or f"{'sync-' if sync else ''}{uuid.uuid4()}-u1", request)
        self.jobs[job.id] = job
        self._queue.append(job.id)
        self._tell()
        return job

    async def requeue(self, job_id: str) -> None:
        """Queues a job once more."""
        job = self.jobs[job_id]
        job.status, job.output, job.error = "IN_QUEUE", None, None
        self._queue.append(job_id)
        self._tell()

    async def take(self, worker: str, wanted: int) -> list[Job]:
        """Hands out jobs; waits for some for a while."""
        await self._hold(lambda: bool(self._queue) and not self.paused)
        taken: list[Job] = []
        while self._queue and not self.paused and len(taken) < wanted:
            job = self.jobs[self._queue.popleft()]
            job.status, job.worker, job.taken = "IN_PROGRESS", worker, time.monotonic()
            taken.append(job)
            self._limit_time(job)
        return taken

    async def stop_orders(self, worker: str) -> list[str]:
        """The jobs that a worker is to stop; waits for some for a while."""
        await self._hold(lambda: bool(self._stops[worker]))
        orders, self._stops[worker] = self._stops[worker], []
        return orders

    async def cancel(self, job_id: str) -> None:
        """What POST /cancel does."""
        self._end(self.jobs[job_id], "CANCELLED")

    async def resume(self) -> None:
        """Hands out jobs again."""
        self.paused = False
        self._tell()

    def _end(self, job: Job, status: str) -> None:
        if job.status == "IN_QUEUE":
            self._queue.remove(job.id)
        elif job.status == "IN_PROGRESS":
            self._stops[job.worker or ""].append(job.id)
        else:
            return
        job.status, job.finished = status, time.monotonic()
        self._tell()

    def _limit_time(self, job: Job) -> None:
        limit_ms = job.request.get("policy", {}).get("executionTimeout", EXECUTION_TIMEOUT_MS)

        def expire() -> None:
            if job.status == "IN_PROGRESS":
                self._end(job, "TIMED_OUT")

        asyncio.get_running_loop().call_later(limit_ms / 1000, expire)

    async def _hold(self, there: Callable[[], bool]) -> None:
        """A long poll: until there is something, or its time is up."""
        news, end = asyncio.Event(), time.monotonic() + self.poll_s
        self._waiting.add(news)
        try:
            while not there() and (left := end - time.monotonic()) > 0:
                await asyncio.wait({asyncio.ensure_future(news.wait())}, timeout=left)
                news.clear()
        finally:
            self._waiting.discard(news)
            news.set()

    def _tell(self) -> None:
        for news in self._waiting:
            news.set()

"""The SDK's take loop (runpod 1.12), mended where it could lose a job or keep one waiting.

- A request for jobs that is open when the worker is told to stop may still bring some: the SDK
  holds them and never runs them. Here they are run.
- The SDK ends only when that request, and the one for stop orders, are answered, after up to 90 s.
  Here both are given up: the first as soon as it has had the time to be answered, the second when
  the last job is done.
- With as many jobs as it may have, the SDK looks for room once a second. Here the next job is asked
  for as soon as one is done.
- Where the platform answers with an error, or with nothing, at once, the SDK asks again at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import ClientSession
from runpod.serverless.modules.rp_job import get_job, get_stop_signals
from runpod.serverless.modules.rp_scale import JobScaler

from worker.serverless.flight import Flight
from worker.serverless.logs import current_job
from worker.speech import end_all

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Job = dict[str, Any]

GRACE_S = 0.25  # for jobs that are on their way when the worker is told to stop
PAUSE_S = 1.0  # before the platform is asked again after an answer without jobs that came at once


class OrderlyScaler(JobScaler):  # type: ignore[misc]  # the SDK is not typed
    """Takes jobs, runs them, and leaves when told to, without a job unanswered."""

    def __init__(self, config: dict[str, Any], flight: Flight) -> None:
        super().__init__(config)
        self.jobs_fetcher = self._ask_for_jobs
        self._flight = flight
        flight.on_leave = self.kill_worker
        self._room = asyncio.Event()  # a job is done
        self._all_taken = asyncio.Event()  # no more jobs will come
        self._all_done = asyncio.Event()

    def kill_worker(self) -> None:
        """Takes no more jobs; may be called by a signal's handler, in which nothing is logged."""
        super().kill_worker()
        self._room.set()

    def current_occupancy(self) -> int:
        """Jobs that were taken; the SDK counts those twice that have not begun."""
        return int(self.job_progress.get_job_count())

    async def set_scale(self) -> None:
        """Settles how many jobs may run, then waits until another may."""
        await super().set_scale()
        while self.is_alive() and self.current_occupancy() >= self.current_concurrency:
            self._room.clear()
            await self._room.wait()

    async def get_jobs(self, session: ClientSession) -> None:
        """Takes jobs until the worker is told to stop."""
        try:
            await super().get_jobs(session)
        finally:
            logger.info("no more jobs are taken; %d to finish", self.current_occupancy())
            self._all_taken.set()

    async def run_jobs(self, session: ClientSession) -> None:
        """Runs what was taken, to the last."""
        await super().run_jobs(session)
        await self._all_taken.wait()
        await super().run_jobs(session)  # what came while the first was ending
        self._all_done.set()

    async def monitor_stop_signals(self, session: ClientSession) -> None:
        """Listens for stop orders as long as there is anything to stop."""
        listening = asyncio.create_task(self._listen(session))
        await self._all_done.wait()
        await end_all([listening])

    async def _listen(self, session: ClientSession) -> None:
        while True:
            await super().monitor_stop_signals(session)
            if self.is_alive():
                return  # the platform has no such channel
            try:
                for job_id in await get_stop_signals(session):
                    await self.stop_job(job_id)
            except Exception as error:  # noqa: BLE001 - whatever it is, the jobs go on
                logger.warning("no stop orders: %s", type(error).__name__)
            await asyncio.sleep(PAUSE_S)

    async def stop_job(self, job_id: str) -> bool:
        """Cancels a job's task, if it has one."""
        token = current_job.set(job_id)
        stopped = bool(await super().stop_job(job_id))
        logger.info("stop order: %s", "stopped" if stopped else "no such job runs")
        current_job.reset(token)
        return stopped

    async def handle_job(self, session: ClientSession, job: Job) -> None:
        """Runs one job and posts its result."""
        try:
            async with self._flight.job():
                await super().handle_job(session, job)
        finally:
            self._room.set()

    async def _ask_for_jobs(self, session: ClientSession, wanted: int) -> list[Job] | None:
        if not self.is_alive():
            return None
        asked = time.monotonic()
        jobs: list[Job] | None = None
        try:
            jobs = await self._unless_leaving(get_job(session, wanted))
            return jobs
        finally:
            if not jobs and time.monotonic() - asked < PAUSE_S:
                await self._unless_leaving(asyncio.sleep(PAUSE_S))

    async def _unless_leaving(self, request: Coroutine[Any, Any, Result]) -> Result | None:
        """What a request brings; nothing where the worker is told to stop before it does."""
        asking = asyncio.create_task(request)
        leaving = asyncio.create_task(self._shutdown_event.wait())
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({asking}, timeout=GRACE_S)
            return asking.result() if asking.done() else None
        finally:
            await end_all([asking, leaving])

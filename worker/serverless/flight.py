"""Jobs that were taken and are not answered yet, and the worker's way out.

A worker whose engine is worn out takes nothing more and asks to be replaced. RunPod may stop it as
soon as that order arrives, so the order goes with the answer that is posted last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # that a failed job waits for its neighbours; after it the worker leaves unasked


class Flight:
    """The jobs under way, each known by its asyncio task; the SDK gives every job one."""

    def __init__(self) -> None:
        self.on_leave: Callable[[], None] | None = None
        self._jobs: dict[asyncio.Task[Any], AsyncExitStack] = {}
        self._last: asyncio.Task[Any] | None = None
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def job(self) -> AsyncIterator[None]:
        """Counts the task that enters as a job, until what was posted for it is there."""
        task = _current_task()
        try:
            async with AsyncExitStack() as stack:
                self._jobs[task] = stack
                yield
        finally:
            del self._jobs[task]
            self._changed.set()

    def at_the_end(self, clean_up: Callable[[], Any]) -> None:
        """Has a coroutine function called when this task's job is over, however that came about.

        A generator that is given up is closed some time later; its job's slots should not wait.
        """
        stack = self._jobs.get(_current_task())
        if stack is not None:
            stack.push_async_callback(clean_up)

    async def leave(self) -> bool:
        """Takes no more jobs.

        Returns:
            Whether this job's answer is the last one, and is to carry the order to replace the
            worker. The first job that asks waits for all others; those that ask later do not.
        """
        if self.on_leave is not None:
            self.on_leave()
        task = _current_task()
        if self._last is not None and self._last is not task and not self._last.done():
            return False
        self._last = task
        try:
            await asyncio.wait_for(self._alone(task), PATIENCE_S)
        except asyncio.TimeoutError:  # before Python 3.11, not the built-in one
            logger.warning("others still work; the worker leaves when they are done")
            return False
        return True

    async def _alone(self, task: asyncio.Task[Any]) -> None:
        while self._jobs.keys() - {task}:
            self._changed.clear()
            await self._changed.wait()


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a job runs in a task"
    return task

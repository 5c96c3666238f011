"""How far a job is, told to RunPod in order and never after its result.

The SDK's `progress_update` posts each update from a thread of its own, to the address to which
results go. One that is late leaves the job in progress for ever. Here one task per job posts them
one after the other, and a job's answer waits until the last is through.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any

from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http

logger = logging.getLogger(__name__)

POST_S = 5.0  # that one update may take, with the SDK's attempts
REST_S = 2.0  # that the updates which are still to be sent may hold up the answer


class Progress:
    """Called with the number of finished chunks and that of all; entered for one job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job
        self._updates: asyncio.Queue[dict[str, int] | None] = asyncio.Queue()
        self._sender: asyncio.Task[None] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Takes an update to be sent; must be called on the event loop."""
        if not rp_http.JOB_DONE_URL.startswith("http"):
            return  # not on RunPod
        self._updates.put_nowait({"chunks_processed": done, "chunks_total": total})
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def __aenter__(self) -> Progress:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._sender is None:
            return
        while error is not None and not self._updates.empty():
            self._updates.get_nowait()  # nobody needs to know how far a failed job was
        self._updates.put_nowait(None)
        if not isinstance(error, asyncio.CancelledError):
            await asyncio.wait({self._sender}, timeout=REST_S)
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self) -> None:
        async with AsyncClientSession() as session:
            while (update := await self._updates.get()) is not None:
                body = {"status": "IN_PROGRESS", "output": update}
                try:
                    await asyncio.wait_for(rp_http.send_result(session, body, self._job), POST_S)
                except asyncio.TimeoutError:  # before Python 3.11, not the built-in one
                    logger.warning("an update of the progress took over %.0f s", POST_S)

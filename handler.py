"""RunPod's door: a job in, an answer out. Everything else is in `worker/`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

# The SDK's own default logs every input and every result whole. It reads this when imported.
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")

import runpod

from worker.config import load_settings
from worker.errors import WorkerError
from worker.schema import parse_job
from worker.service import Service
from worker.settings import Settings
from worker.startup import start

logger = logging.getLogger("handler")

Answer = dict[str, object]


def make_handler(
    service: Service, settings: Settings
) -> Callable[[dict[str, Any]], Coroutine[Any, Any, Answer]]:
    """The handler that the SDK calls with `{"id": …, "input": …}`."""

    async def handle(job: dict[str, Any]) -> Answer:
        job_id = str(job.get("id", "unnamed"))
        try:
            # In a thread: 20 MB of base64 would hold up the other jobs.
            request = await asyncio.to_thread(parse_job, job.get("input"), settings.generation)
            return await service.run(request, job_id)
        except WorkerError as error:
            logger.info("job %s refused or failed: %s", job_id, error)
            return _failure(str(error), error.code, error.retryable)
        except Exception:
            # Raised further, the SDK would send traceback and host name to the client.
            logger.exception("job %s failed", job_id)
            message = "internal_error: the worker failed on this job; its log has the cause"
            return _failure(message, "internal_error", retryable=True)

    return handle


def _failure(message: str, code: str, retryable: bool) -> Answer:
    return {"error": message, "error_code": code, "retryable": retryable}


def main() -> None:
    """Loads everything, then takes jobs; ends at once with one line if that cannot be."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    try:
        settings = load_settings()
        service = start(settings)
    except WorkerError as error:
        logger.critical("the worker cannot start: %s", error)
        sys.exit(1)
    concurrent = settings.generation.limits.concurrent_requests
    runpod.serverless.start(
        {
            "handler": make_handler(service, settings),
            "concurrency_modifier": lambda _current: concurrent,
        }
    )


if __name__ == "__main__":
    main()

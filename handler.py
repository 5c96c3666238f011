"""RunPod's door: a job in, an answer out. Everything else is in `worker/`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

# The SDK's own default logs every input and every result whole. It reads this when imported.
os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")

import runpod

from worker.config import load_settings
from worker.errors import WorkerError
from worker.serverless.answers import Answer
from worker.serverless.flight import Flight
from worker.serverless.jobs import Job, Jobs
from worker.serverless.logs import set_up_log
from worker.serverless.mending import mend_sdk
from worker.service import Service
from worker.settings import Settings
from worker.startup import log_imports, start

logger = logging.getLogger("handler")


def make_handler(
    service: Service, settings: Settings, flight: Flight | None = None
) -> Callable[[Job], Coroutine[Any, Any, Answer]]:
    """The handler that the SDK calls with `{"id": …, "input": …}`: one answer a job."""
    jobs = Jobs(service, settings, flight or Flight())

    async def handle(job: Job) -> Answer:
        return await jobs.answer(job)

    return handle


def make_stream_handler(
    service: Service, settings: Settings, config: dict[str, Any], flight: Flight | None = None
) -> Callable[[Job], AsyncGenerator[Answer, None]]:
    """The handler that answers in pieces; to the SDK only a generator function is one."""
    jobs = Jobs(service, settings, flight or Flight())

    async def handle(job: Job) -> AsyncGenerator[Answer, None]:
        async for item in jobs.items(job, config):
            yield item

    return handle


def make_config(service: Service, settings: Settings, flight: Flight) -> dict[str, Any]:
    """What the SDK is started with."""
    # More jobs than the engine has slots would wait here, where no other worker can take them.
    at_once = min(service.slots, settings.generation.limits.concurrent_requests)
    config: dict[str, Any] = {"concurrency_modifier": lambda _current: at_once}
    if settings.platform.handler_mode == "stream":
        config["handler"] = make_stream_handler(service, settings, config, flight)
        config["return_aggregate_stream"] = True
    else:
        config["handler"] = make_handler(service, settings, flight)
    return config


def load() -> tuple[Service, Settings]:
    """Everything that is loaded before the first job; ends the process where that cannot be."""
    try:
        settings = load_settings()
        return start(settings), settings
    except WorkerError as error:
        reason = str(error)
    except Exception as error:
        logger.exception("unexpected, while the worker was starting")
        reason = f"{type(error).__name__}: {error}"
    logger.critical("the worker cannot start: %s", " ".join(reason.split()))
    sys.exit(1)


def main() -> None:
    """Loads everything, then takes jobs; ends at once with one line if that cannot be."""
    set_up_log()
    log_imports()
    service, settings = load()
    flight = Flight()
    mend_sdk(flight)
    runpod.serverless.register_fitness_check(service.check_alive)
    runpod.serverless.start(make_config(service, settings, flight))
    service.close()
    logger.info("done; the worker ends")


if __name__ == "__main__":
    main()

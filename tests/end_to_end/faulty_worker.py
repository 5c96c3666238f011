"""The worker with a fault that no test can bring about otherwise; `FAULT` says which.

start    loading fails with an error that nobody has foreseen
device   the device is lost at the next step once the file `fault` is there
memory   a job whose text begins with `[S1] Too much` finds no memory
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import handler
import worker.startup
from worker.engine.runner import Runner
from worker.errors import OutOfMemory
from worker.schema import JobInput
from worker.service import Service

SECRET = "/secret/place"


def fail_at_start() -> None:
    def load_codec(*_: Any) -> None:
        raise ZeroDivisionError("nobody has\nforeseen this")

    worker.startup.load_codec = load_codec  # type: ignore[assignment]


def lose_the_device() -> None:
    step = Runner.step

    def lost(self: Runner, *arguments: Any) -> None:
        if Path("fault").exists():
            raise RuntimeError(f"CUDA error: an illegal memory access was encountered\n{SECRET}.so")
        step(self, *arguments)

    Runner.step = lost  # type: ignore[method-assign]


def run_out_of_memory() -> None:
    run = Service.run

    async def full(self: Service, job: JobInput, *arguments: Any, **others: Any) -> Any:
        if job.text.startswith("[S1] Too much"):
            raise OutOfMemory("the device has no memory left for this job") from MemoryError(SECRET)
        return await run(self, job, *arguments, **others)

    Service.run = full  # type: ignore[method-assign]


if __name__ == "__main__":
    {"start": fail_at_start, "device": lose_the_device, "memory": run_out_of_memory}[
        os.environ["FAULT"]
    ]()
    handler.main()

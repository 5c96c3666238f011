"""Workers as processes, and the platform that they work for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.process import WorkerProcess, environment

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(scope="module")
def start_worker(
    plane: ControlPlane,
    tiny_model: Path,
    voice_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartWorker]:
    """Starts `handler.py`, or another script, for the platform; ends it after the module."""
    started: list[WorkerProcess] = []

    def start(name: str = "worker-1", script: Path | None = None, **more: str) -> WorkerProcess:
        folder = tmp_path_factory.mktemp(name)
        variables = {**environment(tiny_model, voice_folder, folder), **plane.environment(name)}
        started.append(WorkerProcess(folder, {**variables, **more}, script))
        return started[-1]

    yield start
    for worker in started:
        worker.end()

"""What several files look at: what an engine was asked for or plays, and complaints of asyncio."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from tests.played import Part, PlayedEngine, played_service
from tests.service.streams import Play
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.service import Service


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> dict[int, Sequence]:
    """What the engine was asked for, by seed; codes are there once a job is done."""
    sequences: dict[int, Sequence] = {}
    submit = EngineLoop.submit

    def spy(loop: EngineLoop, sequence: Sequence) -> Future[Sequence]:
        sequences[sequence.params.seed] = sequence
        return submit(loop, sequence)

    monkeypatch.setattr(EngineLoop, "submit", spy)
    return sequences


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What asyncio says of tasks that nobody waited for, and the like."""
    heard: list[str] = []
    yield heard
    gc.collect()
    assert heard == []


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    """In float64: what streaming does to the audio is not lost in what rounding does."""
    return load_codec(tiny_model / "codec", torch.device("cpu"), torch.float64)


@pytest.fixture
def play(service: Service, codec: Codec) -> Iterator[Play]:
    """Makes services whose engine plays; at the end none of its threads may have failed."""
    engines: list[PlayedEngine] = []

    def make(
        part: Callable[[Sequence], Part], sizes: tuple[int, ...] = (8,)
    ) -> tuple[Service, PlayedEngine]:
        engine = PlayedEngine(service._engine.engine.config, part, sizes)
        engines.append(engine)
        return played_service(service, engine, codec), engine

    yield make
    for engine in engines:
        engine.join()
        assert engine.errors == []

"""Jobs as the tests listen to them, in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.played import PlayedEngine
from tests.service.dialogue import DIALOGUE
from worker.codec.codec import Codec
from worker.pieces import Piece
from worker.schema import JobInput, JobResult, parse_job
from worker.service import Service
from worker.settings import GenerationSettings

Play = Callable[..., tuple[Service, PlayedEngine]]


def job_of(**fields: Any) -> JobInput:
    return parse_job({"text": DIALOGUE, "seed": 100, **fields}, GenerationSettings())


async def listen(service: Service, job: JobInput) -> tuple[list[Piece], JobResult]:
    items = [item async for item in service.stream(job, "job")]
    pieces = [item for item in items if isinstance(item, Piece)]
    assert items[:-1] == pieces
    assert isinstance(items[-1], JobResult)
    return pieces, items[-1]


def joined(pieces: list[Piece]) -> NDArray[np.float32]:
    return np.concatenate([piece.waveform for piece in pieces])


def whole(codec: Codec, codes: torch.Tensor) -> NDArray[np.float32]:
    waveform: NDArray[np.float32] = codec.decode(codes).numpy()
    return waveform


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), timeout=60)

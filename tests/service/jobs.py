"""Jobs as the tests ask for them, answered in one."""

from __future__ import annotations

import asyncio
import base64
import gc
from dataclasses import replace
from typing import Any

import pytest

from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.speech import Speech
from worker.take import Spoken

Answer = dict[str, Any]


def run(service: Service, job_id: str = "job-1", **fields: Any) -> Answer:
    return asyncio.run(answer(service, job_id, **fields))


async def answer(service: Service, job_id: str = "job-1", **fields: Any) -> Answer:
    fields = {"text": "[S1] Hello there.", "max_tokens": 24, **fields}
    return await service.run(parse_job(fields, GenerationSettings()), job_id)


def audio_of(answer: Answer) -> bytes:
    return base64.b64decode(answer["audio"])


def silence_for(service: Service, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """As if the model had ended that chunk at once."""
    speak_one = Speech._speak_one

    async def silenced(self: Speech, *arguments: Any) -> Spoken:
        spoken = await speak_one(self, *arguments)
        silent = replace(spoken, codes=spoken.codes[:0])
        return silent if spoken.chunk.index == chunk else spoken

    monkeypatch.setattr(Speech, "_speak_one", silenced)


async def watched(heard: list[str], work: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: heard.append(context["message"]))
    await work
    gc.collect()  # "never retrieved" is said when the task is forgotten
    await asyncio.sleep(0)

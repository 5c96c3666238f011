"""What becomes of a job that does not go well, and of what it held."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
import torch

from tests.service.dialogue import DIALOGUE, SPLIT, A, B, C, D
from tests.service.jobs import Answer, answer, run, silence_for, watched
from tests.service.streams import until
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.errors import EngineError, InvalidInput
from worker.service import Service
from worker.speech import Speech
from worker.take import Spoken


def engine_of(service: Service) -> Engine:
    return service._engine.engine


def test_a_cancelled_job_frees_its_slots_and_leaves_no_task_behind(
    service: Service, complaints: list[str]
) -> None:
    async def cancelled() -> None:
        text = f"[S1] {A} {B} {C} {D} " * 3
        voice: Answer = {"voice_id": "narrator_warm", "chunk_size": 60, "max_tokens": 2000}
        task = asyncio.create_task(answer(service, text=text, temperature=0.1, **voice))
        await until(lambda: len(engine_of(service).scheduler.running) >= 4)
        running = list(engine_of(service).scheduler.running.values())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await until(lambda: not engine_of(service).scheduler)
        assert all(sequence.codes is None for sequence in running)  # none went on to its end
        assert len((await answer(service))["chunks"]) == 1

    asyncio.run(watched(complaints, cancelled()))


def test_a_failing_engine_fails_the_job_once_and_takes_the_next(
    service: Service, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    async def failing() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", lambda _engine: 1 / 0)
            with pytest.raises(EngineError, match="generation failed") as caught:
                await answer(service, text=DIALOGUE, **SPLIT)
        assert caught.value.retryable
        assert "ZeroDivisionError" not in str(caught.value)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await answer(service))["audio_length"] > 0

    asyncio.run(watched(complaints, failing()))


def test_one_failed_chunk_ends_the_others(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
    submitted: dict[int, Sequence],
) -> None:
    speak_one = Speech._speak_one

    async def second_fails(self: Speech, chunk: Any, *rest: Any) -> Spoken:
        if chunk.index == 1:
            await until(lambda: len(engine_of(service).scheduler.running) == 3)
            raise EngineError("the second chunk fails")
        return await speak_one(self, chunk, *rest)

    async def failing() -> None:
        text = f"[S1] {A} {B} {C} {D}"
        voice: Answer = {"voice_id": "narrator_warm", "chunk_size": 60, "max_tokens": 2000}
        with pytest.raises(EngineError, match="the second chunk fails"):
            await answer(service, text=text, temperature=0.1, **voice)
        await until(lambda: not engine_of(service).scheduler)
        assert [sequence.codes for sequence in submitted.values()] == [None] * 3

    monkeypatch.setattr(Speech, "_speak_one", second_fails)
    asyncio.run(watched(complaints, failing()))


def test_a_job_whose_every_chunk_is_silent_fails_in_words(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence_for(service, monkeypatch, chunk=0)
    with pytest.raises(EngineError, match="no audio"):
        run(service)


def test_a_text_that_must_not_be_cut_and_does_not_fit_is_refused(service: Service) -> None:
    with pytest.raises(InvalidInput, match="enable_chunking is false"):
        run(service, text=A * 20, enable_chunking=False)


def live_tensors() -> int:
    gc.collect()
    # By type: isinstance looks into every object, and some warn when they are looked at.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_job_of_two_hundred_chunks_leaves_no_more_behind_than_one_of_two(
    service: Service,
) -> None:
    def chunks(count: int) -> int:
        text = " ".join(f"[S{1 + at % 2}] It is line {at} of this play." for at in range(count))
        sizes: Answer = {"chunk_size": 40, "allow_multiple_speakers": False, "max_tokens": 2}
        return int(run(service, text=text, **sizes)["chunks_processed"])

    assert chunks(2) == 2
    before = live_tensors()
    assert chunks(200) == 200
    # While it is idle, the engine's thread remembers what it finished last: a sequence a slot,
    # each with its prompt and its codes.
    assert live_tensors() <= before + 2 * engine_of(service).slots

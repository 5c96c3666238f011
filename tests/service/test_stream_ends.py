"""What becomes of a stream when its listener leaves or it fails, and of others beside it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from tests.models import random_codes
from tests.played import Part, PlayedEngine
from tests.service.dialogue import SPLIT, VOICE, A, B, C, D
from tests.service.jobs import watched
from tests.service.streams import Play, job_of, joined, listen, until, whole
from worker.codec.codec import Codec
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import EngineError, JobTimeout
from worker.pieces import Piece
from worker.schema import JobResult
from worker.service import Service


def nothing_is_left(engine: PlayedEngine) -> None:
    assert all(sequence.cancelled.is_set() for sequence in engine.submitted)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_listener_who_leaves_frees_every_slot_at_once(play: Play, complaints: list[str]) -> None:
    service, engine = play(lambda _: Part(400, pause=40, gate=threading.Event()))

    async def leave() -> None:
        stream = service.stream(job_of(text=f"[S1] {A} {B} {C} {D}", **VOICE), "job")
        await anext(stream)
        assert len(engine.submitted) == 4
        await asyncio.wait_for(stream.aclose(), timeout=1)
        nothing_is_left(engine)

    asyncio.run(watched(complaints, leave()))
    assert all(sequence.codes is None for sequence in engine.submitted)


@pytest.mark.parametrize("heard_first", [True, False])
def test_a_cancelled_listener_frees_every_slot_at_once(
    play: Play, complaints: list[str], heard_first: bool
) -> None:
    pause = 40 if heard_first else 8
    service, engine = play(lambda _: Part(400, pause=pause, gate=threading.Event()))
    heard: list[object] = []

    async def cancel() -> None:
        job = job_of(text=f"[S1] {A} {B} {C} {D}", **VOICE)

        async def follow() -> None:
            async for item in service.stream(job, "job"):
                heard.append(item)  # noqa: PERF401

        task = asyncio.create_task(follow())
        await until(lambda: len(engine.submitted) == 4 and bool(heard) == heard_first)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, timeout=1)
        await asyncio.sleep(0)
        nothing_is_left(engine)

    asyncio.run(watched(complaints, cancel()))


def test_a_listener_who_leaves_with_the_event_loop_does_not_trouble_the_engine(
    play: Play,
) -> None:
    gate = threading.Event()
    service, engine = play(lambda _: Part(400, pause=40, gate=gate))

    async def leave() -> None:
        await anext(service.stream(job_of(text=A), "job"))

    asyncio.run(leave())
    for sequence in engine.submitted:
        assert sequence.on_codes is not None
        sequence.on_codes(random_codes(8, 9))


@pytest.mark.parametrize("error", [EngineError("it fails"), JobTimeout("it fails")])
def test_a_failing_chunk_ends_the_stream_after_the_chunks_before_it(
    play: Play, complaints: list[str], error: Exception
) -> None:
    gate = threading.Event()

    def part(sequence: Sequence) -> Part:
        if sequence.params.seed == 101:
            return Part(0, error=error)
        return Part(200, pause=40 if sequence.params.seed == 100 else 8, gate=gate)

    service, engine = play(part)

    async def follow() -> None:
        pieces: list[Piece] = []
        with pytest.raises(type(error), match="it fails"):
            async for item in service.stream(job_of(text=f"[S1] {A} {B} {C} {D}", **VOICE), "job"):
                assert isinstance(item, Piece)
                pieces.append(item)
                await until(lambda: sum(one.cancelled.is_set() for one in engine.submitted) >= 3)
                gate.set()
        assert {piece.chunk for piece in pieces} == {0}
        assert pieces[-1].last_of_chunk
        assert sum(piece.frames for piece in pieces) == 200
        nothing_is_left(engine)

    asyncio.run(watched(complaints, follow()))


def test_a_chunk_whose_anchor_failed_fails_with_the_anchor_s_error(
    play: Play, complaints: list[str]
) -> None:
    service, _ = play(lambda _: Part(0, error=EngineError("the first one fails")))

    async def follow() -> None:
        with pytest.raises(EngineError, match="the first one fails"):
            await listen(service, job_of(**SPLIT))

    asyncio.run(watched(complaints, follow()))


def test_streams_side_by_side_do_not_mix(play: Play, codec: Codec) -> None:
    played, _ = play(lambda one: Part(150 + one.params.seed % 7))

    async def both() -> list[tuple[list[Piece], JobResult]]:
        jobs = [job_of(text=A, seed=seed) for seed in (1, 2, 3)]
        return await asyncio.gather(*(listen(played, job) for job in jobs))

    for seed, (pieces, _) in zip((1, 2, 3), asyncio.run(both()), strict=True):
        expected = whole(codec, random_codes(150 + seed, 9, seed))
        assert np.allclose(joined(pieces), expected, atol=1e-6)


def test_a_stream_of_a_real_engine_frees_its_slots_when_it_is_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[Sequence] = []
    submit = EngineLoop.submit

    def spy(loop: EngineLoop, sequence: Sequence) -> Any:
        submitted.append(sequence)
        return submit(loop, sequence)

    monkeypatch.setattr(EngineLoop, "submit", spy)

    async def leave() -> None:
        text = f"[S1] {A} {B} {C} {D}"
        stream = service.stream(job_of(text=text, max_tokens=2000, temperature=0.1, **VOICE), "job")
        first = await anext(stream)
        assert isinstance(first, Piece)
        assert not first.last_of_chunk
        await stream.aclose()
        await until(lambda: not service._engine.engine.scheduler)
        assert [sequence.codes for sequence in submitted] == [None] * 4

    asyncio.run(leave())

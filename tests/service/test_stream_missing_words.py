"""What listeners get of chunks that lack words: another attempt, or once heard a warning."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.models import random_codes
from tests.played import Part
from tests.service.dialogue import HOP, VOICE, A, B, C
from tests.service.streams import Play, job_of, joined, listen, until, whole
from worker.codec.codec import Codec
from worker.engine.sequence import Sequence
from worker.errors import EngineError
from worker.pieces import Piece
from worker.schema import JobResult


def parts_in_order(*parts: Part) -> Callable[[Sequence], Part]:
    left = iter(parts)
    return lambda _: next(left)


def test_a_chunk_that_lacks_words_and_was_not_heard_is_spoken_again(
    play: Play, codec: Codec
) -> None:
    played, engine = play(parts_in_order(Part(12), Part(200)))
    pieces, result = asyncio.run(listen(played, job_of(text=A)))
    again = engine.submitted[1].params.seed
    assert np.allclose(joined(pieces), whole(codec, random_codes(200, 9, again)), atol=1e-6)
    assert result.chunks[0].seed == again
    assert result.warnings == []


def test_a_chunk_that_was_heard_already_is_kept_and_the_user_is_told_what_it_lacks(
    play: Play, codec: Codec
) -> None:
    gate = threading.Event()
    played, engine = play(lambda _: Part(45, pause=32, gate=gate))

    async def follow() -> None:
        stream = played.stream(job_of(text=A), "job")
        first = await anext(stream)
        gate.set()
        items = [first, *[item async for item in stream]]
        result = items.pop()
        assert isinstance(result, JobResult)
        waveform = joined([item for item in items if isinstance(item, Piece)])
        assert np.allclose(waveform, whole(codec, random_codes(45, 9, 100)), atol=1e-6)
        assert len(engine.submitted) == 1
        (told,) = result.warnings
        assert told.startswith("chunk 1 has 45 frames, too few for its text")

    asyncio.run(follow())


def test_a_later_chunk_that_lacks_words_is_spoken_again_while_the_first_is_heard(
    play: Play,
) -> None:
    gate = threading.Event()

    def part(sequence: Sequence) -> Part:
        if sequence.params.seed == 100:
            return Part(300, pause=40, gate=gate)
        return Part(45) if sequence.params.seed == 101 else Part(200)

    service, engine = play(part)

    async def follow() -> None:
        stream = service.stream(job_of(text=f"[S1] {A} {B}", **VOICE), "job")
        await anext(stream)
        await until(lambda: len(engine.submitted) == 3 and engine.submitted[2].codes is not None)
        gate.set()
        *_, result = [item async for item in stream]
        assert isinstance(result, JobResult)
        assert [chunk.frames for chunk in result.chunks] == [300, 200]
        assert result.warnings == []

    asyncio.run(follow())


def test_an_attempt_is_not_heard_before_it_is_longer_than_the_one_before(
    play: Play, codec: Codec
) -> None:
    gate = threading.Event()
    first = Part(300, pause=40, gate=gate)
    later = iter([Part(60), Part(50), Part(55)])
    played, engine = play(lambda one: first if one.params.seed == 100 else next(later))

    async def follow() -> None:
        stream = played.stream(job_of(text=f"[S1] {A} {B}", **VOICE), "job")
        await anext(stream)
        await until(lambda: len(engine.submitted) >= 3)
        gate.set()
        items = [item async for item in stream]
        result = items.pop()
        assert isinstance(result, JobResult)
        assert [chunk.frames for chunk in result.chunks] == [300, 60]
        second = [item for item in items if isinstance(item, Piece) and item.chunk == 1]
        assert np.allclose(joined(second), whole(codec, random_codes(60, 9, 101)), atol=1e-6)

    asyncio.run(follow())


def test_a_job_whose_every_chunk_is_silent_fails_in_words(play: Play) -> None:
    service, _ = play(lambda _: Part(0))
    with pytest.raises(EngineError, match="no audio"):
        asyncio.run(listen(service, job_of(text=A)))


def test_a_silent_chunk_between_others_leaves_no_gap(play: Play) -> None:
    silent = {101, (101 + 0x9E3779B9) % 2**32, (101 + 2 * 0x9E3779B9) % 2**32}
    service, _ = play(lambda one: Part(0 if one.params.seed in silent else 150))
    pieces, result = asyncio.run(listen(service, job_of(text=f"[S1] {A} {B} {C}", **VOICE)))
    assert {piece.chunk for piece in pieces} == {0, 2}
    assert [chunk.frames for chunk in result.chunks] == [150, 0, 150]
    assert result.audio_length == 300 * HOP

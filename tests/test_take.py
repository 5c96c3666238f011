"""When a chunk's frames may be heard."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import random_codes
from worker.errors import EngineError
from worker.take import FIRST_FRAMES, MOST_FRAMES, Spoken, Take
from worker.text import Chunk, Turn

CHUNK = Chunk(0, (Turn("S1", "The harbor is quiet, and the boats wait for wind."),))
CODES = random_codes(1000, 9)


async def outcome(frames: int) -> Spoken:
    return Spoken(CHUNK, CODES[:frames], seed=1, ended=True, limit=2000)


async def ended(take: Take, work: Coroutine[Any, Any, Spoken]) -> None:
    task = asyncio.create_task(work)
    task.add_done_callback(take.end)
    await asyncio.wait({task})


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_nothing_is_heard_before_there_are_thirty_frames() -> None:
    async def listen() -> None:
        take = Take()
        receive = take.attempt(longest=0)
        waiting = asyncio.create_task(take.next())
        receive(CODES[: FIRST_FRAMES - 1])
        await settle()
        assert not waiting.done()
        assert not take.begun
        receive(CODES[FIRST_FRAMES - 1 : FIRST_FRAMES])
        codes, last = await waiting
        assert torch.equal(codes, CODES[:FIRST_FRAMES])
        assert not last
        assert take.begun

    asyncio.run(listen())


def test_a_chunk_shorter_than_that_is_heard_when_it_is_done() -> None:
    async def listen() -> None:
        take = Take()
        take.attempt(longest=0)(CODES[:7])
        await ended(take, outcome(7))
        codes, last = await take.next()
        assert torch.equal(codes, CODES[:7])
        assert last

    asyncio.run(listen())


def test_another_attempt_is_heard_only_once_it_is_longer_than_the_one_it_replaces() -> None:
    async def listen() -> None:
        take = Take()
        take.attempt(longest=0)(random_codes(50, 9, seed=1))
        await settle()
        receive = take.attempt(longest=50)
        receive(CODES[:50])
        waiting = asyncio.create_task(take.next())
        await settle()
        assert not waiting.done()
        receive(CODES[50:51])
        codes, _ = await waiting
        assert torch.equal(codes, CODES[:51])

    asyncio.run(listen())


@pytest.mark.parametrize("size", [1, 30, 500, 1000])
def test_every_frame_is_heard_once_in_order_and_in_pieces_of_bounded_size(size: int) -> None:
    async def listen() -> None:
        take = Take()
        receive = take.attempt(longest=0)
        heard: list[Tensor] = []
        for codes in CODES[:900].split(size):
            receive(codes)
        await settle()
        heard.append((await take.next())[0])
        receive(CODES[900:])
        await ended(take, outcome(1000))
        last = False
        while not last:
            codes, last = await take.next()
            heard.append(codes)
        assert torch.equal(torch.cat(heard), CODES)
        assert max(len(codes) for codes in heard) == MOST_FRAMES
        assert all(len(codes) for codes in heard)

    asyncio.run(listen())


def test_what_ended_the_chunk_is_told_to_the_listener() -> None:
    async def failing() -> Spoken:
        raise EngineError("generation failed")

    async def listen() -> None:
        take = Take()
        take.attempt(longest=0)
        waiting = asyncio.create_task(take.next())
        await ended(take, failing())
        with pytest.raises(EngineError, match="generation failed"):
            await waiting

    asyncio.run(listen())


def test_frames_that_come_after_everyone_has_left_are_dropped() -> None:
    async def begin() -> Any:
        return Take().attempt(longest=0)

    asyncio.run(begin())(CODES[:8])


def test_only_an_end_that_the_model_chose_too_early_lacks_words() -> None:
    assert CHUNK.frames > 100
    assert Spoken(CHUNK, CODES[:10], seed=1, ended=True, limit=2000).lacks_words
    assert not Spoken(CHUNK, CODES[:10], seed=1, ended=False, limit=10).lacks_words
    assert not Spoken(CHUNK, CODES[: CHUNK.frames], seed=1, ended=True, limit=2000).lacks_words

"""When listeners get the pieces: while the rest is generated, and in the order of the text."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from tests.played import Part
from tests.service.dialogue import SPLIT, VOICE, A, B, C, D
from tests.service.streams import Play, job_of, listen, until
from worker.codec.codec import Codec
from worker.engine.sequence import Sequence
from worker.pieces import Piece
from worker.schema import JobResult
from worker.take import MOST_FRAMES


def test_the_first_piece_comes_while_its_chunk_is_being_generated(play: Play) -> None:
    gate = threading.Event()
    service, _ = play(lambda _: Part(400, pause=32, gate=gate))

    async def first() -> None:
        stream = service.stream(job_of(text=A), "job")
        piece = await asyncio.wait_for(anext(stream), timeout=30)
        assert isinstance(piece, Piece)
        assert not gate.is_set()
        assert (piece.chunk, piece.index, piece.start_s, piece.last_of_chunk) == (0, 0, 0, False)
        assert 0 < piece.frames <= 32
        gate.set()
        rest = [item async for item in stream]
        assert isinstance(rest[-1], JobResult)

    asyncio.run(first())


def test_later_chunks_are_generated_side_by_side_and_heard_in_the_order_of_the_text(
    play: Play,
) -> None:
    gate = threading.Event()

    def part(sequence: Sequence) -> Part:
        return Part(300, pause=40, gate=gate) if sequence.params.seed == 100 else Part(200)

    service, engine = play(part)

    async def follow() -> None:
        stream = service.stream(job_of(text=f"[S1] {A} {B} {C} {D}", **VOICE), "job")
        first = await anext(stream)
        assert isinstance(first, Piece)
        await until(lambda: sum(one.codes is not None for one in engine.submitted) == 3)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        assert not waiting.done()  # the others are done, and wait for the first
        gate.set()
        second = await waiting
        assert isinstance(second, Piece)
        assert second.chunk == 0
        chunks = [item.chunk async for item in stream if isinstance(item, Piece)]
        assert chunks == sorted(chunks)
        assert set(chunks) == {0, 1, 2, 3}

    asyncio.run(follow())


def test_decoding_holds_up_neither_the_engine_nor_other_jobs(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: set[threading.Thread] = set()
    decode = Codec.decode

    def spy(codec: Codec, codes: torch.Tensor) -> torch.Tensor:
        decoders.add(threading.current_thread())
        return decode(codec, codes)

    monkeypatch.setattr(Codec, "decode", spy)
    service, engine = play(lambda _: Part(200))
    asyncio.run(listen(service, job_of(**SPLIT)))
    assert decoders
    assert decoders.isdisjoint({threading.current_thread(), *engine.threads})


def test_what_nobody_has_asked_for_yet_waits_as_codes(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = Codec.decode

    def spy(codec: Codec, codes: torch.Tensor) -> torch.Tensor:
        decoded.append(len(codes))
        return decode(codec, codes)

    monkeypatch.setattr(Codec, "decode", spy)
    service, engine = play(lambda _: Part(2000), sizes=(2000,))

    async def slow() -> None:
        stream = service.stream(job_of(text=f"[S1] {A} {B} {C} {D}", **VOICE), "job")
        await anext(stream)
        await until(lambda: sum(one.codes is not None for one in engine.submitted) == 4)
        await asyncio.sleep(0.05)
        assert sum(decoded) <= MOST_FRAMES
        await stream.aclose()

    asyncio.run(slow())

"""What listeners get who do not wait for the end: pieces in order, and the same audio."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.models import random_codes
from tests.played import Part, PlayedEngine, played_service
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import EngineError, JobTimeout
from worker.pieces import Piece
from worker.schema import JobInput, JobResult, parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.take import MOST_FRAMES

HOP = 512
RATE = 44_100
A = "The harbor is quiet, and the boats wait for wind."
B = "I have not seen the lighthouse keeper for a week."
C = "He went to the mainland to buy a new lamp, I hear."
D = "Then who is it that I see up there every evening?"
DIALOGUE = f"[S1] {A} [S2] {B} [S1] {C} [S2] {D}"
SPLIT: dict[str, Any] = {"allow_multiple_speakers": False, "chunk_size": 60}
VOICE: dict[str, Any] = {"voice_id": "narrator_warm", "chunk_size": 60}  # no chunk waits for one

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


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """The waveforms that `speak` made files of."""
    from worker.service import encode_audio

    waveforms: list[NDArray[np.float32]] = []

    def spy(waveform: NDArray[np.float32], *rest: Any) -> Any:
        waveforms.append(waveform)
        return encode_audio(waveform, *rest)

    monkeypatch.setattr("worker.service.encode_audio", spy)
    return waveforms


# The same audio


def check_same_as_spoken(
    service: Service, job: JobInput, encoded: list[NDArray[np.float32]], tolerance: float
) -> None:
    """Streams a job and speaks it."""
    pieces, streamed = asyncio.run(listen(service, job))
    spoken, _ = asyncio.run(service.speak(job))
    waveform = joined(pieces)
    assert waveform.dtype == np.float32
    assert waveform.shape == encoded[-1].shape
    assert np.abs(waveform - encoded[-1]).max() <= tolerance
    timed = {"generation_time", "job_id"}
    assert streamed.model_dump(exclude=timed) == spoken.model_dump(exclude=timed)


@pytest.mark.parametrize("case", range(8))
def test_the_pieces_joined_are_what_the_whole_job_would_have_been(
    play: Play, encoded: list[NDArray[np.float32]], case: int
) -> None:
    draw = random.Random(case)
    shares = [draw.choice([0.0, draw.uniform(0.35, 0.6)]) for _ in range(9)]
    shares[0] = 0.4  # not all are silent

    def part(sequence: Sequence) -> Part:
        estimated = (sequence.max_new_frames - 258) / 2
        share = shares[sequence.params.seed % 9]
        # Of those that lack words a stream spares only what it has not begun to hand out.
        return Part(round(estimated * share) or sequence.params.seed % 30)

    service, _ = play(part, draw.choice([(1,), (8,), (29, 2), (1000,), (3, 50, 7)]))
    texts = [f"[S{draw.choice('12')}] {draw.choice([A, B, C, D])}" for _ in range(case % 4 + 1)]
    job = job_of(
        text=" ".join(texts),
        seed=draw.randrange(9) * 9,
        chunk_size=draw.choice([40, 60, 120, 500]),
        allow_multiple_speakers=draw.choice([True, False]),
        voice_id=draw.choice([None, "narrator_warm"]),
    )
    check_same_as_spoken(service, job, encoded, tolerance=1e-6)


@pytest.mark.parametrize(
    "fields", [{}, SPLIT, VOICE, {"text": f"[S2] {A}", "max_tokens": 200}, {"temperature": 0.0}]
)
def test_the_small_model_streams_what_it_speaks(
    service: Service, encoded: list[NDArray[np.float32]], fields: dict[str, Any]
) -> None:
    job = job_of(**{"max_tokens": 90, **fields})
    # Convolutions of another length round otherwise; one value of 16 bits is 3e-5.
    check_same_as_spoken(service, job, encoded, tolerance=1e-4)


def test_the_pieces_are_numbered_and_timed_without_gaps(play: Play) -> None:
    service, _ = play(lambda sequence: Part(120 + sequence.params.seed))
    pieces, result = asyncio.run(listen(service, job_of(**SPLIT)))
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    samples = 0
    for piece in pieces:
        assert piece.start_s == samples / RATE
        samples += len(piece.waveform)
        assert piece.end_s == samples / RATE
        assert len(piece.waveform) == piece.frames * HOP > 0
    assert result.audio_length == samples
    assert result.sample_rate == RATE
    assert result.duration == round(samples / RATE, 3)


def test_every_chunk_says_which_piece_is_its_last(play: Play) -> None:
    service, _ = play(lambda sequence: Part(120 + sequence.params.seed))
    pieces, result = asyncio.run(listen(service, job_of(**SPLIT)))
    assert [piece.chunk for piece in pieces if piece.last_of_chunk] == [0, 1, 2, 3]
    assert [piece.chunk for piece in pieces] == sorted(piece.chunk for piece in pieces)
    for told in result.chunks:
        ends = [round(piece.end_s, 3) for piece in pieces if piece.last_of_chunk]
        assert told.end in ends


def test_no_piece_is_longer_than_four_seconds(play: Play) -> None:
    service, _ = play(lambda _: Part(900), sizes=(900,))
    pieces, _ = asyncio.run(listen(service, job_of(text=A)))
    assert len(pieces) == 3
    context = 2 * service._codec.context_frames  # of the last piece, which is final at once
    assert max(piece.frames for piece in pieces) <= MOST_FRAMES + context


# The order, and when


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


# Chunks that lack words


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


# Leaving, and failing


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What asyncio says of tasks that nobody waited for, and the like."""
    heard: list[str] = []
    yield heard
    gc.collect()
    assert heard == []


async def watched(heard: list[str], work: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: heard.append(context["message"]))
    await work
    gc.collect()
    await asyncio.sleep(0)


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

"""What listeners get who do not wait for the end: the same audio, in pieces without gaps."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.played import Part
from tests.service.dialogue import HOP, RATE, SPLIT, VOICE, A, B, C, D
from tests.service.streams import Play, job_of, joined, listen
from worker.engine.sequence import Sequence
from worker.schema import JobInput
from worker.service import Service
from worker.take import MOST_FRAMES


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

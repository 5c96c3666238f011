"""Audio encoded piece by piece: joined, it is a file, and the same speech."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from worker.audio.encode import to_int16
from worker.audio.live import LiveEncoder
from worker.errors import EngineError, InvalidInput

RATE = 44_100
WAVE = (0.4 * np.sin(np.arange(3 * RATE) * 0.05)).astype(np.float32)


def encoded(format: str, piece: int, wave: NDArray[np.float32] = WAVE, rate: int = RATE) -> bytes:
    encoder = LiveEncoder(format, rate)
    pieces = [encoder.push(wave[at : at + piece]) for at in range(0, len(wave), piece)]
    return b"".join([*pieces, encoder.finish()])


def decoded(data: bytes) -> tuple[NDArray[np.float32], int]:
    with av.open(io.BytesIO(data)) as file:
        frames = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
        wave = np.concatenate(frames)
        if wave.dtype.kind == "i":
            wave = wave / np.float32(2 ** (8 * wave.dtype.itemsize - 1))
        return wave.astype(np.float32), int(file.streams.audio[0].rate)


def test_a_wav_in_pieces_holds_every_sample() -> None:
    samples, rate = soundfile.read(io.BytesIO(encoded("wav", 5000)), dtype="int16")
    assert rate == RATE
    assert np.array_equal(samples, to_int16(WAVE))


@pytest.mark.parametrize("format", ["wav", "pcm", "flac"])
def test_how_it_is_cut_changes_nothing(format: str) -> None:
    assert encoded(format, 777) == encoded(format, len(WAVE))


@pytest.mark.parametrize("format", ["flac", "mp3", "opus", "aac"])
@pytest.mark.parametrize("piece", [512, 30_000])
def test_a_compressed_file_in_pieces_sounds_like_what_went_in(format: str, piece: int) -> None:
    wave, rate = decoded(encoded(format, piece))
    assert rate == (48_000 if format == "opus" else RATE)
    assert 0 <= len(wave) / rate - 3 < 0.1
    middle = wave[rate : 2 * rate]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.03)


def test_most_of_a_piece_is_there_before_the_next() -> None:
    for format in ("flac", "mp3", "opus", "aac"):
        encoder = LiveEncoder(format, RATE)
        early = encoder.push(WAVE)
        assert len(early) > 0.75 * (len(early) + len(encoder.finish()))


def test_a_rate_that_a_format_does_not_know_is_changed_and_named() -> None:
    encoder = LiveEncoder("mp3", 96_000)
    assert encoder.sample_rate == 48_000


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(EngineError, match="not finite"):
        LiveEncoder("wav", RATE).push(np.array([np.nan], np.float32))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidInput, match="ogg"):
        LiveEncoder("ogg", RATE)

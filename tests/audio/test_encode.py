"""What a user gets who asks for a format."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from worker.audio.decode import read_audio
from worker.audio.encode import FORMATS, encode_audio, to_int16
from worker.errors import EngineError, InvalidInput

RATE = 44_100
CODEC_FRAME = {"wav": 0, "flac": 0, "pcm": 0, "mp3": 1152, "opus": 960, "aac": 2 * 1024}  # samples
LEAST_SNR = {"wav": 70.0, "flac": 70.0, "pcm": 70.0, "mp3": 20.0, "opus": 15.0, "aac": 20.0}  # dB
DELAY = {"aac": 1024}  # samples; ADTS cannot say


def speechlike(seconds: float = 2.0, rate: int = RATE, level: float = 0.3) -> NDArray[np.float32]:
    """Harmonics of a gliding pitch, in syllables."""
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate
    voiced = sum(np.sin(k * phase) / k for k in range(1, 20))
    waveform = level * voiced * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)) / 2
    return np.asarray(waveform, dtype=np.float32)


def decoded(data: bytes, format: str) -> tuple[NDArray[np.float32], int]:
    """Decodes without any of our own code."""
    if format == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768, RATE
    if format != "aac":
        return soundfile.read(io.BytesIO(data), dtype="float32")
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames), container.streams.audio[0].rate


def snr(clean: NDArray[np.float32], heard: NDArray[np.float32]) -> float:
    length = min(len(clean), len(heard))
    error = clean[:length] - heard[:length]
    return float(10 * np.log10(np.sum(clean[:length] ** 2) / np.sum(error**2)))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_decodes_to_what_was_encoded(format: str) -> None:
    waveform = speechlike()
    encoded = encode_audio(waveform, RATE, format)
    heard, rate = decoded(encoded.data, format)
    assert rate == encoded.sample_rate == (48_000 if format == "opus" else RATE)
    assert abs(len(heard) - encoded.samples) <= CODEC_FRAME[format]
    assert encoded.duration_s == pytest.approx(2.0, abs=1e-3)
    sent = speechlike(rate=rate)
    assert snr(sent, heard[DELAY.get(format, 0) :]) > LEAST_SNR[format]


@pytest.mark.parametrize(
    ("format", "start", "mime_type", "extension"),
    [
        ("wav", b"RIFF", "audio/wav", ".wav"),
        ("flac", b"fLaC", "audio/flac", ".flac"),
        ("mp3", b"\xff", "audio/mpeg", ".mp3"),
        ("opus", b"OggS", "audio/ogg", ".opus"),
        ("aac", b"\xff\xf1", "audio/aac", ".aac"),
        ("pcm", b"", "audio/pcm", ".pcm"),
    ],
)
def test_every_file_is_of_the_kind_it_says(
    format: str, start: bytes, mime_type: str, extension: str
) -> None:
    encoded = encode_audio(speechlike(0.2), RATE, format)
    assert encoded.data.startswith(start)
    assert (encoded.format, encoded.mime_type) == (format, mime_type)
    assert FORMATS[format].extension == extension


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("samples", [1, 100, 1025])
def test_the_shortest_waveform_is_still_a_file(format: str, samples: int) -> None:
    encoded = encode_audio(speechlike()[:samples], RATE, format)
    heard, _ = decoded(encoded.data, format)
    assert len(heard) >= encoded.samples > 0


def test_wav_flac_and_pcm_hold_the_same_rounded_samples() -> None:
    waveform = np.array([0.0, 0.49 / 32768, 0.51 / 32768, -0.51 / 32768, 1.0, -1.0], np.float32)
    expected = [0, 0, 1, -1, 32767, -32768]
    assert to_int16(waveform).tolist() == expected
    for format in ("wav", "flac"):
        data = encode_audio(waveform, RATE, format).data
        assert soundfile.read(io.BytesIO(data), dtype="int16")[0].tolist() == expected
    pcm = encode_audio(waveform, RATE, "pcm").data
    assert np.frombuffer(pcm, "<i2").tolist() == expected


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_too_loud_is_clipped_not_wrapped_around(format: str) -> None:
    loud = speechlike(level=5.0)
    heard, rate = decoded(encode_audio(loud, RATE, format).data, format)
    sent = np.clip(speechlike(level=5.0, rate=rate), -1, 1)
    assert snr(sent, heard[DELAY.get(format, 0) :]) > 10


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_an_error_of_the_engine(format: str, bad: float) -> None:
    waveform = speechlike(0.1)
    waveform[7] = bad
    with pytest.raises(EngineError, match="not finite"):
        encode_audio(waveform, RATE, format)


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_waveform_is_an_error_of_the_engine(format: str) -> None:
    with pytest.raises(EngineError, match="0 samples"):
        encode_audio(np.zeros(0, np.float32), RATE, format)


@pytest.mark.parametrize("format", ["WAV", "m4b", "", "../wav"])
def test_an_unknown_format_is_refused_with_those_that_are_valid(format: str) -> None:
    with pytest.raises(InvalidInput, match="output_format") as caught:
        encode_audio(speechlike(0.1), RATE, format)
    assert repr(format) in caught.value.message
    assert "wav, flac, mp3, opus, aac, pcm" in caught.value.message


@pytest.mark.parametrize(("format", "rate"), [("mp3", 44_100), ("aac", 44_100), ("wav", 50_000)])
def test_a_rate_the_format_does_not_know_is_resampled(format: str, rate: int) -> None:
    encoded = encode_audio(speechlike(rate=50_000), 50_000, format)
    assert encoded.sample_rate == rate
    assert len(read_audio(encoded.data, rate)) / rate == pytest.approx(2.0, abs=0.05)


def test_the_waveform_given_is_left_as_it_was() -> None:
    waveform = speechlike(level=5.0)
    before = waveform.copy()
    encode_audio(waveform, RATE, "wav")
    np.testing.assert_array_equal(waveform, before)

"""A finished waveform to the bytes of a file.

Knows containers, codecs and their sample rates. Knows nothing of how the waveform came about.

Python itself writes wav, soundfile flac and mp3, PyAV opus (as exact as libsndfile, and three
times as fast on the same speech) and aac, which libsndfile has not. wav, flac and pcm hold the same
int16 values; mp3 and opus decode to as many samples as went in. ADTS has no field for the encoder's
delay, so aac decodes with 1024 samples (23 ms at 44.1 kHz) of near silence before it.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import av
import numpy as np
import soundfile
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray

from worker.errors import EngineError, InvalidInput

OPUS_BIT_RATE = 64_000  # bits a second; transparent for mono speech
AAC_BIT_RATE = 128_000  # ffmpeg's encoder has no better mode for mono
FALLBACK_RATE = 44_100  # Hz, for waveforms at a rate that the format does not know

_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_AAC_RATES = (*_MP3_RATES, 64000, 88200, 96000)


@dataclass(frozen=True)
class AudioFormat:
    """One kind of file that a job may ask for."""

    name: str
    mime_type: str
    extension: str  # with its dot
    rates: tuple[int, ...] | None = None  # Hz; None: any


@dataclass(frozen=True)
class EncodedAudio:
    """A whole file, and what is in it."""

    data: bytes
    format: str
    mime_type: str
    sample_rate: int  # Hz, of the file; not always that of the waveform
    samples: int  # at that rate

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.samples / self.sample_rate


FORMATS: Mapping[str, AudioFormat] = MappingProxyType(
    {
        "wav": AudioFormat("wav", "audio/wav", ".wav"),
        "flac": AudioFormat("flac", "audio/flac", ".flac"),
        "mp3": AudioFormat("mp3", "audio/mpeg", ".mp3", _MP3_RATES),
        "opus": AudioFormat("opus", "audio/ogg", ".opus", (48_000,)),
        "aac": AudioFormat("aac", "audio/aac", ".aac", _AAC_RATES),
        "pcm": AudioFormat("pcm", "audio/pcm", ".pcm"),  # int16, little-endian, no header
    }
)


def audio_format(name: str) -> AudioFormat:
    """The format of that name.

    Raises:
        InvalidInput: if there is none.
    """
    known = FORMATS.get(name)
    if known is None:
        raise InvalidInput(f"output_format is {name!r}; valid are {', '.join(FORMATS)}")
    return known


def encode_audio(waveform: NDArray[np.float32], sample_rate: int, format: str) -> EncodedAudio:
    """Encodes one mono waveform.

    Args:
        waveform: [N] float32; what lies outside [-1, 1] is clipped.
        sample_rate: Hz. Where the format does not know it, the waveform is resampled.
        format: a key of `FORMATS`.

    Raises:
        InvalidInput: if the format is unknown.
        EngineError: if the waveform is empty or holds values that are not finite.
    """
    target = audio_format(format)
    _check_waveform(waveform)
    rate = _rate_for(target, sample_rate)
    if rate != sample_rate:
        waveform = np.asarray(soxr.resample(waveform, sample_rate, rate), dtype=np.float32)
    data = _encode(waveform, rate, target.name)
    return EncodedAudio(data, target.name, target.mime_type, rate, len(waveform))


def to_int16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """[N] float32 to int16, rounded to nearest; 1.0 is 32768, clipped to 32767."""
    scaled = waveform * np.float32(32768.0)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    samples: NDArray[np.int16] = scaled.astype(np.int16)
    return samples


def _check_waveform(waveform: NDArray[np.float32]) -> None:
    assert waveform.ndim == 1, "mono waveforms only"
    if waveform.size == 0:
        raise EngineError("there is no audio to encode: the waveform has 0 samples")
    if not np.isfinite(waveform).all():
        raise EngineError("the waveform holds values that are not finite (NaN or infinity)")


def _rate_for(target: AudioFormat, sample_rate: int) -> int:
    if target.rates is None or sample_rate in target.rates:
        return sample_rate
    return FALLBACK_RATE if FALLBACK_RATE in target.rates else target.rates[0]


def _encode(waveform: NDArray[np.float32], rate: int, format: str) -> bytes:
    if format == "pcm":
        return _pcm(waveform)
    if format == "wav":
        return _with_wave(_pcm(waveform), rate)
    if format == "flac":
        return _with_soundfile(to_int16(waveform), rate, "FLAC", "PCM_16")
    waveform = np.clip(waveform, -1.0, 1.0)
    if format == "opus":
        return _with_av(waveform, rate, "ogg", "libopus", OPUS_BIT_RATE)
    if format == "aac":
        return _with_av(waveform, rate, "adts", "aac", AAC_BIT_RATE)
    return _with_soundfile(waveform, rate, "MP3", "MPEG_LAYER_III")


def _pcm(waveform: NDArray[np.float32]) -> bytes:
    return to_int16(waveform).astype("<i2", copy=False).tobytes()


def _with_wave(pcm: bytes, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        output.writeframes(pcm)
    return file.getvalue()


def _with_soundfile(
    samples: NDArray[np.float32] | NDArray[np.int16], rate: int, container: str, subtype: str
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def _with_av(
    waveform: NDArray[np.float32], rate: int, container: str, codec: str, bit_rate: int
) -> bytes:
    file = io.BytesIO()
    with av.open(file, mode="w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(waveform[np.newaxis, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()

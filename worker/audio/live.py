"""Pieces of a waveform to pieces of one file, while the rest is still to come.

Joined in order the pieces are a file that players read. They cannot know its length in advance:
the header of a wav says that it has no end, as that of a radio's does, and a flac's says nothing.
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray

from worker.audio.encode import AAC_BIT_RATE, OPUS_BIT_RATE, audio_format, to_int16
from worker.errors import EngineError

MP3_BIT_RATE = 128_000
LAME_GAIN = 0.95  # by which LAME makes everything quieter at a given bit rate
COMMON_RATE = 48_000  # Hz; every format knows it
ENDLESS = 0xFFFF_FFFF  # the size of a wav whose length is not known

# Container, codec, bits a second, samples, and options, as ffmpeg calls them
_CODECS: dict[str, tuple[str, str, int | None, str, dict[str, str]]] = {
    "mp3": ("mp3", "libmp3lame", MP3_BIT_RATE, "fltp", {"write_xing": "0", "id3v2_version": "0"}),
    "aac": ("adts", "aac", AAC_BIT_RATE, "fltp", {}),
    "opus": ("ogg", "libopus", OPUS_BIT_RATE, "fltp", {"page_duration": "200000"}),  # µs
    "flac": ("flac", "flac", None, "s16", {}),
}


class LiveEncoder:
    """Encodes one mono waveform piece by piece."""

    def __init__(self, format: str, sample_rate: int) -> None:
        """Begins a file.

        Args:
            format: a key of `worker.audio.encode.FORMATS`.
            sample_rate: Hz, of the waveform.

        Raises:
            InvalidInput: if the format is unknown.
        """
        known = audio_format(format)
        rates = known.rates
        self.sample_rate = sample_rate if rates is None or sample_rate in rates else COMMON_RATE
        self._format = format
        self._begun = False
        self._resampler = None
        if self.sample_rate != sample_rate:
            self._resampler = soxr.ResampleStream(sample_rate, self.sample_rate, 1)
        self._codec = _Codec(format, self.sample_rate) if format in _CODECS else None

    def push(self, waveform: NDArray[np.float32]) -> bytes:
        """The bytes that are ready once this stretch [N] is there; sometimes none.

        Raises:
            EngineError: if it holds values that are not finite.
        """
        if not np.isfinite(waveform).all():
            raise EngineError("the waveform holds values that are not finite (NaN or infinity)")
        if self._resampler is not None:
            waveform = self._resampler.resample_chunk(waveform)
        return self._encode(waveform)

    def finish(self) -> bytes:
        """The bytes that were still held back."""
        rest = b""
        if self._resampler is not None:
            rest = self._encode(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        return rest + (self._codec.finish() if self._codec is not None else b"")

    def _encode(self, waveform: NDArray[np.float32]) -> bytes:
        if self._codec is not None:
            return self._codec.push(waveform) if len(waveform) else b""
        header = b""
        if self._format == "wav" and not self._begun:
            self._begun, header = True, _endless_wav(self.sample_rate)
        return header + to_int16(waveform).astype("<i2", copy=False).tobytes()


class _Codec:
    """An ffmpeg encoder that writes into a sink without an end."""

    def __init__(self, format: str, rate: int) -> None:
        container, codec, bit_rate, self._samples, options = _CODECS[format]
        self._sink = _Sink()
        self._output = av.open(self._sink, mode="w", format=container, options=options)
        stream = self._output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        self._stream = stream
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        self._rate, self._position = rate, 0

    def push(self, waveform: NDArray[np.float32]) -> bytes:
        samples: NDArray[Any] = np.clip(waveform, -1.0, 1.0)
        if self._stream.name == "libmp3lame":
            samples /= np.float32(LAME_GAIN)
        elif self._samples == "s16":
            samples = to_int16(waveform)
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis, :], self._samples, layout="mono")
        frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
        frame.pts, self._position = self._position, self._position + len(waveform)
        self._output.mux(self._stream.encode(frame))
        return self._sink.take()

    def finish(self) -> bytes:
        self._output.mux(self._stream.encode(None))
        self._output.close()
        return self._sink.take()


class _Sink:
    """A file that is written from front to end; without `seek`, ffmpeg does not go back."""

    def __init__(self) -> None:
        self._written = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self._written.write(data)

    def take(self) -> bytes:
        data, self._written = self._written.getvalue(), io.BytesIO()
        return data


def _endless_wav(rate: int) -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)  # PCM, mono, 16 bits
    riff = b"RIFF" + struct.pack("<I", ENDLESS) + b"WAVEfmt " + form
    return riff + b"data" + struct.pack("<I", ENDLESS)

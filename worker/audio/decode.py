"""Any recording to one mono waveform.

Knows the containers that people send and how long a recording may be to be worth decoding. Knows
nothing of what makes a good reference (see `check`).

soundfile reads wav, flac, mp3 and ogg. PyAV reads the rest, with its demuxers limited to those of
recordings: ffmpeg also knows playlists, which name files and addresses for it to open.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
import soundfile
import soxr  # type: ignore[import-untyped]
from numpy.typing import NDArray

from worker.errors import InvalidReference

MAX_SECONDS = 120.0  # decoding stops here
BLOCK = 65_536  # frames decoded at a time
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz
MAX_CHANNELS = 8

READABLE = "wav, flac, mp3, ogg, m4a, aac, webm"
_AV_DEMUXERS = "aac,aiff,flac,matroska,webm,mov,mp4,m4a,mp3,ogg,wav,asf,caf"


def read_audio(
    source: Path | bytes, sample_rate: int, max_seconds: float = MAX_SECONDS
) -> NDArray[np.float32]:
    """Reads a recording as [N] float32, channels averaged, resampled to `sample_rate` (Hz).

    Args:
        source: a file, or the bytes of one. Its kind is found by content, not by name.
        sample_rate: of the waveform returned, in Hz.
        max_seconds: longer recordings are refused, without decoding the rest of them.

    Raises:
        InvalidReference: if it cannot be read, is not audio, is empty or is too long.
    """
    name = source.name if isinstance(source, Path) else "the recording"
    try:
        waveform, rate = _decode(source, name, max_seconds)
    except OSError as error:
        raise InvalidReference(f"{name} cannot be read: {error.strerror or error}") from error
    if waveform.size == 0:
        raise InvalidReference(f"{name} holds no audio (0 samples)")
    if rate == sample_rate:
        return waveform
    return np.asarray(soxr.resample(waveform, rate, sample_rate, quality="HQ"), dtype=np.float32)


def _decode(source: Path | bytes, name: str, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    with _open(source) as file:
        try:
            return _with_soundfile(file, name, max_seconds)
        except soundfile.LibsndfileError:
            file.seek(0)
        try:
            return _with_av(file, name, max_seconds)
        except (av.error.FFmpegError, IndexError, ValueError) as error:
            raise InvalidReference(f"{name} is not audio that can be read ({READABLE})") from error


def _open(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # By its descriptor: soundfile would believe the ending of a file's name over its content
    return os.fdopen(os.open(source, os.O_RDONLY), "rb")


def _with_soundfile(
    file: BinaryIO, name: str, max_seconds: float
) -> tuple[NDArray[np.float32], int]:
    with soundfile.SoundFile(file) as opened:
        _check_kind(name, opened.samplerate, opened.channels)
        blocks = _soundfile_blocks(opened)
        return _collect(blocks, name, opened.samplerate, max_seconds), opened.samplerate


def _soundfile_blocks(opened: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    # Not SoundFile.blocks(): where a cut-off mp3 ends early, it yields memory it never wrote
    while len(block := opened.read(BLOCK, dtype="float32", always_2d=True)):
        yield block.mean(axis=1)  # [n, C] -> [n]


def _with_av(file: BinaryIO, name: str, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    with av.open(file, mode="r", options={"format_whitelist": _AV_DEMUXERS}) as container:
        stream = container.streams.audio[0]
        _check_kind(name, stream.rate, stream.channels)
        return _collect(_av_blocks(container, stream), name, stream.rate, max_seconds), stream.rate


def _av_blocks(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[NDArray[np.float32]]:
    resampler = av.AudioResampler(format="fltp", rate=stream.rate)  # one sample format, no mixing
    for frame in container.decode(stream):
        for planar in resampler.resample(frame):
            yield planar.to_ndarray().mean(axis=0)  # [C, n] -> [n]


def _check_kind(name: str, rate: int, channels: int) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidReference(
            f"{name} has a sample rate of {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz can be read"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidReference(f"{name} has {channels} channels; 1 to {MAX_CHANNELS} can be read")


def _collect(
    blocks: Iterator[NDArray[np.float32]], name: str, rate: int, max_seconds: float
) -> NDArray[np.float32]:
    kept: list[NDArray[np.float32]] = []
    total = 0
    for block in blocks:
        total += len(block)
        if total > max_seconds * rate:
            raise InvalidReference(f"{name} is longer than {max_seconds:g} s, the limit")
        kept.append(block)
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.float32)

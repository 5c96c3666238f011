"""A codec that only counts, and recordings to encode with it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worker.audio.encode import encode_audio
from worker.voices.library import VoiceLibrary

RATE = 44_100
TEXT = "[S1] The harbor is quiet, and the boats are waiting for the wind."


class FakeCodec:
    """Codes are the loudness of each frame; every call is counted."""

    def __init__(self, fingerprint: str = "0123456789abcdef", seconds: float = 0.0) -> None:
        self.sample_rate = RATE
        self.hop_length = 512
        self.fingerprint = fingerprint
        self.calls = 0
        self.at_once = 0
        self._seconds = seconds
        self._busy = threading.Lock()

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        assert waveform.ndim == 1 and waveform.dtype == torch.float32
        self.calls += 1
        if not self._busy.acquire(blocking=False):
            self.at_once += 1
            self._busy.acquire()
        time.sleep(self._seconds)
        self._busy.release()
        frames = -(-len(waveform) // self.hop_length)
        padded = torch.nn.functional.pad(waveform, (0, frames * self.hop_length - len(waveform)))
        loudness = padded.view(frames, -1).abs().mean(dim=1, keepdim=True)
        return (loudness * 1023).long().expand(-1, 9)


def tone(seconds: float = 6.0, hertz: float = 220.0, level: float = 0.3) -> NDArray[np.float32]:
    t = np.arange(round(seconds * RATE)) / RATE
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * t)
    return (level * swell * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def write_tone(path: Path, seconds: float = 6.0, hertz: float = 220.0, level: float = 0.3) -> Path:
    path.write_bytes(encode_audio(tone(seconds, hertz, level), RATE, path.suffix[1:]).data)
    return path


def write_voice(library: Path, voice_id: str, transcript: str = TEXT) -> Path:
    """A voice as a person would put it there; returns its folder."""
    folder = library / voice_id
    folder.mkdir(parents=True)
    write_tone(folder / "audio.flac")
    (folder / "voice.yaml").write_text(f'transcript: "{transcript}"\nmetadata: {{gender: male}}\n')
    return folder


def library_of(
    path: Path, *names: str, codec: FakeCodec | None = None, size: int = 10
) -> VoiceLibrary:
    for name in names:
        write_voice(path, name)
    return VoiceLibrary(path, codec or FakeCodec(), max_cache_size=size)


def files_below(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*")}


def codes_file(path: Path, voice_id: str) -> Path:
    (file,) = (path / voice_id).glob("codes.*.safetensors")
    return file

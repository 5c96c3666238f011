"""Waveforms as arrays: trimming, level, sample types, and the speeds that make other voices."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from builder.train_tiny.config import LOUDNESS

BEFORE_S, AFTER_S = 0.040, 0.080  # kept around the speech
WINDOW_S = 0.010  # of the loudness that tells speech from silence
AUDIBLE = 10 ** (-42 / 20)  # of the loudest window
PEAK = 0.98  # no sample is louder; what would be is turned down as a whole
GRID = 1_050  # Hz; rates that are multiples of it have small ratios to 44,100
SLOWEST, FASTEST = 0.88, 1.14  # speeds at which a recording is still a voice


def trim(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Cuts silence off both ends, but for 40 ms before and 80 ms after."""
    window = round(WINDOW_S * rate)
    count = len(waveform) // window
    if not count:
        return waveform
    loudness = np.sqrt((waveform[: count * window].reshape(count, window) ** 2).mean(1))
    audible = np.flatnonzero(loudness > loudness.max() * AUDIBLE)
    if not len(audible):
        return waveform
    first = max(0, int(audible[0]) * window - round(BEFORE_S * rate))
    last = (int(audible[-1]) + 1) * window + round(AFTER_S * rate)
    return waveform[first:last]


def level(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """The waveform at the loudness of all recordings."""
    rms = float(np.sqrt(np.mean(waveform**2))) + 1e-9
    peak = float(np.abs(waveform).max()) + 1e-9
    louder: NDArray[np.float32] = waveform * np.float32(min(LOUDNESS / rms, PEAK / peak))
    return louder


def to_int16(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """Full scale ±1 to 16 bits."""
    return np.round(np.clip(waveform, -1, 1) * 32_767).astype(np.int16)


def speeds(rate: int) -> list[int]:
    """Rates that a recording of `rate` may be said to have, which makes other voices of it."""
    first, last = ceil(rate * SLOWEST / GRID), int(rate * FASTEST / GRID)
    return sorted({rate, *(step * GRID for step in range(first, last + 1))})

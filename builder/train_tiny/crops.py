"""Batches for the codec: pieces of recordings at other speeds and levels, resampled on the device.

Only cutting happens on the host; a group of examples shares its rate, so that one convolution
resamples all of it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.train_tiny.recordings import Recording
from builder.train_tiny.resample import resample, source_length
from builder.train_tiny.sound import PEAK, speeds

GROUPS = 6  # rates in a batch
SOFTEST_DB, LOUDEST_DB = -14.0, 6.0  # of the level of all recordings
OUTSIDE = 0.25  # part of an example that may lie before or after its recording, in silence


class Crops:
    """An endless source of batches.

    Args:
        recordings: what is cut; at least one.
        crop: samples of an example, at the codec's rate.
        count: examples of a batch.
        device: where batches are made.
        seed: of all that is drawn.
    """

    def __init__(
        self, recordings: list[Recording], crop: int, count: int, device: torch.device, seed: int
    ) -> None:
        self._by_rate: dict[int, list[Recording]] = {}
        self._rates: list[int] = []  # of each recording
        self.add(recordings)
        self._crop, self._count, self._device = crop, count, device
        self._chance = np.random.default_rng(seed)

    def add(self, recordings: list[Recording]) -> None:
        """Cuts these too from now on."""
        for recording in recordings:
            self._by_rate.setdefault(recording.rate, []).append(recording)
            self._rates.append(recording.rate)

    def batch(self) -> Tensor:
        """[B, crop] float32."""
        sizes = [len(part) for part in np.array_split(np.arange(self._count), GROUPS)]
        made = torch.cat([self._group(size) for size in sizes if size])
        return made * self._gains(made)

    def _group(self, size: int) -> Tensor:
        rate = self._rates[self._chance.integers(len(self._rates))]
        pace = int(self._chance.choice(speeds(rate)))
        length = source_length(self._crop, pace)
        pieces = np.stack([self._cut(rate, length) for _ in range(size)])
        raw = torch.from_numpy(pieces).to(self._device).float() / 32_767
        return resample(raw, pace)[:, : self._crop]

    def _cut(self, rate: int, length: int) -> NDArray[np.int16]:
        """A piece of a recording of that rate; silence where it reaches beyond."""
        choices = self._by_rate[rate]
        samples = choices[self._chance.integers(len(choices))].samples
        margin = int(length * OUTSIDE)
        start = int(self._chance.integers(-margin, max(1, len(samples) - length + margin)))
        piece = np.zeros(length, np.int16)
        inside = samples[max(0, start) : start + length]
        first = max(0, -start)
        piece[first : first + len(inside)] = inside
        return piece

    def _gains(self, made: Tensor) -> Tensor:
        decibels = self._chance.uniform(SOFTEST_DB, LOUDEST_DB, len(made))
        drawn = torch.from_numpy(10 ** (decibels / 20)).to(made)
        loudest = PEAK / made.abs().amax(1).clamp_min(1e-6)
        return torch.minimum(drawn, loudest).unsqueeze(1)

"""Changing the sampling rate of whole batches, on whatever device they are."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import ceil, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.train_tiny.config import SAMPLE_RATE

ZEROS = 24  # zero crossings of the kernel on each side
ROLLOFF = 0.96  # of the lower Nyquist frequency


def source_length(samples: int, rate: int) -> int:
    """How many samples at `rate` become at least `samples` at the codec's rate."""
    return ceil(samples * rate / SAMPLE_RATE) + 1


def resample(waveforms: Tensor, rate: int) -> Tensor:
    """[B, N] at `rate` → [B, ceil(N · 44100 / rate)], by a windowed sinc in polyphase.

    One strided convolution with a kernel for each phase; runs on the device of its input, in
    float64, since a GPU may be told to give float32 convolutions ten bits of mantissa.
    """
    if rate == SAMPLE_RATE:
        return waveforms
    ratio = Fraction(SAMPLE_RATE, rate)
    kernel, reach = _kernel(ratio.numerator, ratio.denominator)
    length = ceil(waveforms.shape[-1] * ratio)
    padded = F.pad(waveforms.unsqueeze(1), (reach, reach + ratio.denominator))
    phases = F.conv1d(padded.double(), kernel.to(padded.device), stride=ratio.denominator)
    return phases.transpose(1, 2).flatten(1)[:, :length].float()  # of [B, up, M]


@cache
def _kernel(up: int, down: int) -> tuple[Tensor, int]:
    """[up, 1, taps]: output phase p of every `down` inputs, and the inputs needed before them."""
    cutoff = min(up, down) / down * ROLLOFF  # of the input's Nyquist frequency
    reach = ceil(ZEROS / cutoff)
    taps = torch.arange(-reach, reach + down, dtype=torch.float64)
    distance = taps - torch.arange(up, dtype=torch.float64).unsqueeze(1) * down / up
    window = torch.cos(distance.clamp(-reach, reach) * pi / (2 * reach)).square()
    return (torch.sinc(distance * cutoff) * window * cutoff).unsqueeze(1), reach

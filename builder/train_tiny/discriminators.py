"""Networks that tell made sound from real: one folds the waveform, one looks at spectra.

Source: Kong et al., HiFi-GAN (periods); Kumar et al. (arXiv:2306.06546; complex spectra in bands).
Narrower than theirs, since the codec is, and so that their weights fit into one small file.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from builder.train_tiny.config import Sizes
from builder.train_tiny.losses import spectrum

PERIODS = (2, 3, 5, 7, 11)
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as parts of the spectrum
SLOPE = 0.1  # of the leaky rectifiers


class Discriminators(nn.Module):
    """All of them; each gives the list of its features, its verdict last."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.periods = nn.ModuleList(
            PeriodDiscriminator(period, sizes.period_channels) for period in PERIODS
        )
        self.spectra = nn.ModuleList(
            SpectrumDiscriminator(window, sizes.spectrum_channels) for window in sizes.spectra
        )

    def forward(self, waveform: Tensor) -> list[list[Tensor]]:
        """[B, N] waveforms."""
        return [module(waveform) for module in (*self.periods, *self.spectra)]


class PeriodDiscriminator(nn.Module):
    """Every `period` samples one below the other, so that what repeats stands in columns."""

    def __init__(self, period: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), (2, 0)))
            for (before, after), stride in zip(pairwise((1, *channels)), strides, strict=True)
        )
        self.verdict = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        padded = F.pad(waveform.unsqueeze(1), (0, -waveform.shape[-1] % self.period))
        x = padded.reshape(len(padded), 1, -1, self.period)  # [B, 1, N / period, period]
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return [*features, self.verdict(x)]


class SpectrumDiscriminator(nn.Module):
    """A complex spectrum, cut into bands that have filters of their own."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        bins = window // 2 + 1
        edges = [int(edge * bins) for edge in BANDS]
        self.bands = list(pairwise(edges))
        self.stacks = nn.ModuleList(nn.ModuleList(_layers(channels)) for _ in self.bands)
        self.verdict = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> list[Tensor]:
        with torch.autocast(waveform.device.type, enabled=False):
            parts = torch.view_as_real(spectrum(waveform, self.window))  # [B, bins, T, 2]
        parts = parts.permute(0, 3, 2, 1)  # [B, 2, T, bins]
        features, ends = [], []
        for (first, last), stack in zip(self.bands, self.stacks, strict=True):
            x = parts[..., first:last]
            assert isinstance(stack, nn.ModuleList)
            for layer in stack:
                x = F.leaky_relu(layer(x), SLOPE)
                features.append(x)
            ends.append(x)
        return [*features, self.verdict(torch.cat(ends, dim=-1))]


def _layers(channels: int) -> list[nn.Module]:
    wide = [
        weight_norm(nn.Conv2d(before, channels, (3, 9), (1, stride), (1, 4)))
        for before, stride in ((2, 1), (channels, 2), (channels, 2), (channels, 2))
    ]
    return [*wide, weight_norm(nn.Conv2d(channels, channels, (3, 3), padding=(1, 1)))]

"""The Descript Audio Codec as mathematics: encoder, residual quantizer, decoder.

Knows shapes and weights, and is an ordinary module that can be trained. Knows nothing of files,
of devices, or of padding a waveform to whole frames. Parameters are named as in the transformers
layout, so that `state_dict()` is that layout; weight norm is folded away when weights are loaded.

Source: Kumar et al., High-Fidelity Audio Compression with Improved RVQGAN (arXiv:2306.06546).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.codec.config import CodecConfig

DILATIONS = (1, 3, 9)  # of the three residual units in every block
EPSILON = 1e-9  # keeps Snake finite where a channel's frequency is zero


class CodecNetwork(nn.Module):
    """Waveform → latent → codes, and back."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = ResidualQuantizer(config)
        self.decoder = Decoder(config)

    def forward(self, waveform: Tensor) -> tuple[Tensor, Quantized]:
        """Encodes and decodes.

        Args:
            waveform: [B, 1, N], N a multiple of the hop length.

        Returns:
            The reconstruction [B, 1, N], and what the quantizer chose.
        """
        quantized = self.quantizer(self.encoder(waveform))
        return self.decoder(quantized.latent), quantized


class Encoder(nn.Module):
    """Waveform [B, 1, N] → latent [B, latent_dim, N / hop]."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        count = len(config.encoder_strides)
        widths = [config.encoder_channels * 2**i for i in range(count + 1)]
        self.conv1 = nn.Conv1d(1, widths[0], kernel_size=7, padding=3)
        self.block = nn.ModuleList(
            EncoderBlock(before, after, stride)
            for (before, after), stride in zip(
                pairwise(widths), config.encoder_strides, strict=True
            )
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = nn.Conv1d(widths[-1], config.latent_dim, kernel_size=3, padding=1)

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.conv1(waveform)  # [B, encoder_channels, N]
        for block in self.block:
            x = block(x)  # channels doubled, length divided by the stride
        latent: Tensor = self.conv2(self.snake1(x))
        return latent


class Decoder(nn.Module):
    """Latent [B, latent_dim, T] → waveform [B, 1, T * hop] within ±1.

    Submodules are created in the order in which they run; `receptive.py` walks them backwards.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        count = len(config.decoder_strides)
        widths = [config.decoder_channels // 2**i for i in range(count + 1)]
        self.conv1 = nn.Conv1d(config.latent_dim, widths[0], kernel_size=7, padding=3)
        self.block = nn.ModuleList(
            DecoderBlock(before, after, stride)
            for (before, after), stride in zip(
                pairwise(widths), config.decoder_strides, strict=True
            )
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = nn.Conv1d(widths[-1], 1, kernel_size=7, padding=3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv1(latent)  # [B, decoder_channels, T]
        for block in self.block:
            x = block(x)  # channels halved, length multiplied by the stride
        return torch.tanh(self.conv2(self.snake1(x)))


class EncoderBlock(nn.Module):
    """Three residual units, then a strided convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (
            ResidualUnit(before, d) for d in DILATIONS
        )
        self.snake1 = Snake(before)
        self.conv1 = nn.Conv1d(
            before, after, kernel_size=2 * stride, stride=stride, padding=stride // 2
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_unit3(self.res_unit2(self.res_unit1(x)))
        shorter: Tensor = self.conv1(self.snake1(x))
        return shorter


class DecoderBlock(nn.Module):
    """A transposed convolution, then three residual units."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(before)
        self.conv_t1 = nn.ConvTranspose1d(
            before, after, kernel_size=2 * stride, stride=stride, padding=stride // 2
        )
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(after, d) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        longer = self.conv_t1(self.snake1(x))
        refined: Tensor = self.res_unit3(self.res_unit2(self.res_unit1(longer)))
        return refined


class ResidualUnit(nn.Module):
    """A dilated convolution over seven taps and a pointwise one, added to their input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = nn.Conv1d(
            channels, channels, kernel_size=7, dilation=dilation, padding=3 * dilation
        )
        self.snake2 = Snake(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return x + change


class Snake(nn.Module):
    """x + sin²(αx) / α, one learned frequency α per channel (Ziyin et al., arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x).square() / (self.alpha + EPSILON)


class Quantized(NamedTuple):
    """What the quantizer made of a latent; K is the number of codebooks.

    `projected` and `chosen` are what the codebook and commitment losses compare.
    """

    latent: Tensor  # [B, latent_dim, T], gradients pass straight through
    codes: Tensor  # [B, K, T] int64
    projected: Tensor  # [B, K, codebook_dim, T], before the choice
    chosen: Tensor  # [B, K, codebook_dim, T], the entries chosen


class ResidualQuantizer(nn.Module):
    """Each codebook quantizes what the ones before it left over."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Quantizer(config) for _ in range(config.codebooks))

    def forward(self, latent: Tensor) -> Quantized:
        residual = latent
        steps: list[tuple[Tensor, ...]] = []
        for quantizer in self.quantizers:
            steps.append(quantizer(residual))
            residual = residual - steps[-1][0]
        parts, codes, projected, chosen = (
            torch.stack(each, dim=1) for each in zip(*steps, strict=True)
        )
        return Quantized(parts.sum(dim=1), codes, projected, chosen)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] → latent [B, latent_dim, T]."""
        quantizers = cast("Iterable[Quantizer]", self.quantizers)
        parts = [
            quantizer.from_codes(ids)
            for quantizer, ids in zip(quantizers, codes.unbind(dim=1), strict=True)
        ]
        return torch.stack(parts).sum(dim=0)


class Quantizer(nn.Module):
    """One codebook: chooses the entry nearest in angle, in a space of few dimensions."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(config.latent_dim, config.codebook_dim, kernel_size=1)
        self.out_proj = nn.Conv1d(config.codebook_dim, config.latent_dim, kernel_size=1)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual [B, latent_dim, T] → its quantized part, codes [B, T], projected, chosen."""
        projected: Tensor = self.in_proj(residual)  # [B, codebook_dim, T]
        codes = self.nearest(projected)
        chosen = self.codebook(codes).transpose(1, 2)  # [B, codebook_dim, T]
        # The value is `chosen`, the gradient is that of `projected`.
        passed = projected + (chosen - projected).detach()
        return self.out_proj(passed), codes, projected, chosen

    def nearest(self, projected: Tensor) -> Tensor:
        """Projected [B, codebook_dim, T] → ids [B, T] of the entries of greatest cosine."""
        # Between unit vectors the least distance is the greatest cosine, and the length of
        # `projected` scales all of a frame's cosines alike, so only the entries are normalised.
        entries = F.normalize(self.codebook.weight, dim=-1)  # [codebook_size, codebook_dim]
        return (projected.transpose(1, 2) @ entries.t()).argmax(dim=-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Ids [B, T] → this codebook's part of the latent [B, latent_dim, T]."""
        part: Tensor = self.out_proj(self.codebook(codes).transpose(1, 2))
        return part

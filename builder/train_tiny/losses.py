"""What the codec is trained on: spectra as ears weigh them, codebooks, and the discriminators.

Source: Kumar et al. (arXiv:2306.06546); their seven mel scales, and least squares for the
adversarial part.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.train_tiny.config import SAMPLE_RATE
from worker.codec.network import Quantized

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
STFT_WINDOWS = (512, 1024, 2048, 4096)  # the last parts the harmonics of a low voice
FLOOR, STFT_FLOOR = 1e-5, 1e-4  # under the logarithm

MEL_WEIGHT, STFT_WEIGHT, COMMITMENT_WEIGHT, FEATURE_WEIGHT = 8.0, 4.0, 0.25, 2.0


def spectrum(waveform: Tensor, window: int) -> Tensor:
    """[B, N] → complex [B, window / 2 + 1, T], a quarter of the window between frames."""
    shape = torch.hann_window(window, device=waveform.device)
    result: Tensor = torch.stft(
        waveform.float(), window, window // 4, window=shape, return_complex=True
    )
    return result


def magnitude(waveform: Tensor, window: int) -> Tensor:
    """[B, N] → [B, window / 2 + 1, T]; differentiable at zero."""
    parts = torch.view_as_real(spectrum(waveform, window))
    return (parts.square().sum(-1) + 1e-12).sqrt()


@cache
def mel_filters(window: int, bands: int) -> Tensor:
    """[bands, window / 2 + 1] triangles, evenly spaced in mel, each of area one."""
    top = 2595 * torch.log10(torch.tensor(1 + SAMPLE_RATE / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2595) - 1)  # Hz
    bins = torch.linspace(0, SAMPLE_RATE / 2, window // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp_min(0)
    return triangles / triangles.sum(1, keepdim=True).clamp_min(1.0)


def mel_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Distance of logarithmic mel spectra, summed over the scales; both [B, N]."""
    total = made.new_zeros(())
    for window, bands in MEL_SCALES:
        filters = mel_filters(window, bands).to(made.device)
        mine, theirs = (
            (filters @ magnitude(waveform, window)).clamp_min(FLOOR).log10()
            for waveform in (made, wanted)
        )
        total = total + F.l1_loss(mine, theirs)
    return total


def stft_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Distance of spectra, summed over the windows; both [B, N].

    Of each, the logarithmic distance, and the linear one relative to what is wanted, which the loud
    parts decide: there the harmonics are.
    """
    total = made.new_zeros(())
    for window in STFT_WINDOWS:
        a, b = magnitude(made, window), magnitude(wanted, window)
        logs = F.l1_loss(a.clamp_min(STFT_FLOOR).log(), b.clamp_min(STFT_FLOOR).log())
        relative = torch.linalg.norm(a - b) / torch.linalg.norm(b).clamp_min(1e-3)
        total = total + logs / 2 + relative
    return total


def codebook_loss(quantized: Quantized) -> Tensor:
    """Draws the entries to what chose them, and a quarter as much the other way."""
    projected, chosen = quantized.projected.float(), quantized.chosen.float()
    codebook = (chosen - projected.detach()).square().mean((0, 2, 3)).sum()
    commitment = (projected - chosen.detach()).square().mean((0, 2, 3)).sum()
    return codebook + COMMITMENT_WEIGHT * commitment


def reconstruction_loss(made: Tensor, wanted: Tensor, quantized: Quantized) -> dict[str, Tensor]:
    """The parts that need no discriminator, weighted; waveforms [B, N]."""
    return {
        "mel": MEL_WEIGHT * mel_loss(made, wanted),
        "stft": STFT_WEIGHT * stft_loss(made, wanted),
        "l1": F.l1_loss(made, wanted),
        "codebook": codebook_loss(quantized),
    }


def adversarial_loss(made: list[list[Tensor]], real: list[list[Tensor]]) -> dict[str, Tensor]:
    """What the codec wants of the discriminators; each gives its features, its verdict last."""
    fooled = torch.stack([(1 - features[-1].float()).square().mean() for features in made]).sum()
    alike = torch.stack(
        [
            F.l1_loss(mine.float(), theirs.float().detach())
            for ours, others in zip(made, real, strict=True)
            for mine, theirs in zip(ours[:-1], others[:-1], strict=True)
        ]
    ).sum()
    return {"adversarial": fooled, "features": FEATURE_WEIGHT * alike}


def discriminator_loss(made: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
    """Least squares: real is one, made is nought."""
    return torch.stack(
        [
            ours[-1].float().square().mean() + (1 - others[-1].float()).square().mean()
            for ours, others in zip(made, real, strict=True)
        ]
    ).sum()

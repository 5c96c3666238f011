"""Where a sentence's frames should look in the text, for as long as the model does not know it.

Cross-attention has to find out by itself which byte is spoken when, and while it has not, the text
helps nobody. A sentence is read from its first to its last byte at about an even pace, so one head
of every layer but the first is drawn towards that diagonal at first, and left alone later.

Source: Tachibana et al., Efficiently Trainable Text-to-Speech System (arXiv:1710.08969), where the
whole text has one diagonal; here every sentence has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NARROWEST, SHARE = 2.5, 0.07  # width of the band: bytes, and part of the sentence's bytes
HEAD = 0  # of each layer but the first
WEIGHT, FADED = 0.4, 0.4  # of the loss at first; part of the run after which it is nothing


@dataclass(frozen=True)
class Span:
    """Which bytes of a text are spoken in which frames; ends are exclusive."""

    first_byte: int
    last_byte: int
    first_frame: int
    last_frame: int


@dataclass(frozen=True)
class Guide:
    """Where each position of R rows of N should look."""

    centre: Tensor  # [R, N] bytes; -1 where nothing is said of it
    width: Tensor  # [R, N] bytes

    def to(self, device: torch.device) -> Guide:
        """The same on a device."""
        return Guide(
            self.centre.to(device, non_blocking=True), self.width.to(device, non_blocking=True)
        )

    def astray(self, weights: Tensor) -> Tensor:
        """How much of the attention [R, N, S] lies off the diagonal, 0 to 1; the loss's penalty."""
        places = torch.arange(weights.shape[-1], device=weights.device)
        apart = (places - self.centre.unsqueeze(-1)) / self.width.unsqueeze(-1)
        off = (weights.float() * (1 - torch.exp(-apart.square() / 2))).sum(-1)
        guided = self.centre >= 0
        mean: Tensor = (off * guided).sum() / guided.sum().clamp_min(1)
        return mean


def guide_for(rows: list[list[Span]], length: int) -> Guide:
    """The guide of samples of `length` positions; position t says frame t of its sample."""
    centre = torch.full((len(rows), length), -1.0)
    width = torch.ones(len(rows), length)
    for row, spans in enumerate(rows):
        for span in spans:
            frames, size = span.last_frame - span.first_frame, span.last_byte - span.first_byte
            where = slice(span.first_frame, span.last_frame)
            centre[row, where] = span.first_byte + (torch.arange(frames) + 0.5) / frames * size
            width[row, where] = NARROWEST + SHARE * size
    return Guide(centre, width)


def weight(fraction: float) -> float:
    """Of the penalty in the loss, when that part of the run is done."""
    return WEIGHT * max(0.0, 1 - fraction / FADED)

"""What a decode step asks for between its matrix products, each operation replaceable alone.

Rows: a step computes N slots twice, first all of them without their text, then all of them with
it. M = 2·N rows; row m belongs to slot m mod N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from worker.engine.footprint import ROWS
from worker.engine.sampling import SamplingBatch


class Reach:
    """How far the token of each slot sees in one step.

    Args:
        positions: [N] int64, of each slot's token; it sees the positions up to its own.
        text_lengths: [N] int64, bytes of each slot's text.
        context: more than every position; what lies beyond is not read.
        text: at least every text length of a running slot; what lies beyond is not read.
    """

    def __init__(self, positions: Tensor, text_lengths: Tensor, context: int, text: int) -> None:
        self.positions, self.text_lengths = positions, text_lengths
        self.context, self.text = context, text

    @property
    def width(self) -> int:
        """N."""
        return self.positions.shape[0]

    @cached_property
    def slots(self) -> Tensor:
        """[N] the slots' numbers."""
        return torch.arange(self.width, device=self.positions.device)

    @cached_property
    def past_mask(self) -> Tensor:
        """[N·2, 1, 1, context], slot by slot: true where a slot's token sees."""
        places = torch.arange(self.context, device=self.positions.device)
        past = places <= self.positions.unsqueeze(1)
        return past.repeat_interleave(ROWS, 0)[:, None, None]

    @cached_property
    def text_mask(self) -> Tensor:
        """[N, 1, 1, text]: true where there is text."""
        places = torch.arange(self.text, device=self.positions.device)
        return (places < self.text_lengths.unsqueeze(1))[:, None, None]


@dataclass(frozen=True)
class Ops:
    """The operations by name. `plain.py` says what each of them means."""

    linear: Callable[[Tensor, Tensor], Tensor]
    norm: Callable[[Tensor, Tensor, float], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor | None, Tensor, float], Tensor]
    swiglu: Callable[[Tensor], Tensor]
    rotate_store: Callable[[Tensor, Tensor, Reach, Tensor, Tensor], Tensor]
    attend: Callable[[Tensor, Tensor, Tensor, Reach], Tensor]
    attend_text: Callable[[Tensor, Tensor | None, Tensor, Tensor, Reach], Tensor]
    draw: Callable[[Tensor, SamplingBatch], Tensor]

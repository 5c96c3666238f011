"""What the kernels are tried on."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from tests.models import CPU
from worker.engine.kernels.ops import Reach

# The interpreter cuts what it rounds to bfloat16, and cannot multiply matrices of it.
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def rotary_of(slots: int, size: int) -> Tensor:
    angles = random(slots, size // 2, seed=9)
    return torch.stack([angles.cos(), angles.sin()], 1)


def reach_of(
    positions: Many[int], context: int, lengths: Many[int] | None = None, text: int = 0
) -> Reach:
    places = torch.tensor(list(positions), device=CPU)
    return Reach(places, torch.tensor(list(lengths or [0] * len(places))), context, text)


def assert_close(have: Tensor, want: Tensor) -> None:
    """Equal up to rounding, with the same places that are no numbers."""
    rounding = ROUNDING[want.dtype]
    assert have.dtype == want.dtype
    largest = want.float().nan_to_num(0.0).abs().max().item()
    torch.testing.assert_close(
        have.float(), want.float(), rtol=rounding, atol=rounding * largest, equal_nan=True
    )

"""Uniform numbers that depend on nothing but (seed, step, channel).

Philox 4x32 with 10 rounds, the generator behind `tl.rand` and cuRAND. Source: Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", 2011. A counter needs no state: a job draws the
same numbers alone, in any batch and on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: Tensor, seed: Tensor) -> Tensor:
    """The first 32-bit word of the block that `counter` numbers.

    Args:
        counter: int64, below 2³².
        seed: int64 of a shape that broadcasts with `counter`.

    Returns:
        int64 in [0, 2³²).
    """
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    c0 = counter + torch.zeros_like(seed)
    c1 = c2 = c3 = torch.zeros_like(c0)
    for _ in range(ROUNDS):
        # The products pass 2⁶³, but their bits are those of the unsigned ones.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((second >> 32) & _WORD) ^ c1 ^ key0, second & _WORD
        c2, c3 = ((first >> 32) & _WORD) ^ c3 ^ key1, first & _WORD
        key0, key1 = (key0 + _WEYL[0]) & _WORD, (key1 + _WEYL[1]) & _WORD
    return c0


def uniform(seeds: Tensor, steps: Tensor, channels: int) -> Tensor:
    """Numbers in (0, 1) for one step of several sequences.

    Args:
        seeds: [N] int64.
        steps: [N] int64, counted from each sequence's first decoded position.
        channels: C.

    Returns:
        [N, C] float32.
    """
    channel = torch.arange(channels, device=steps.device)
    words = philox(steps.unsqueeze(1) * channels + channel, seeds.unsqueeze(1))
    return ((words >> 9).float() + 0.5) * 2.0**-23

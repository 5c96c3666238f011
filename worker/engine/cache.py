"""Keys and values of the running sequences, in memory that is allocated once.

Knows slots and layers. Masks end at a slot's position, so its old content has no weight; it is
zeroed all the same, because nothing outweighs a NaN.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.engine.footprint import ROWS


@dataclass(frozen=True)
class PromptKV:
    """Keys and values of a prompt without its text, each [L, Hkv, P, D]."""

    k: Tensor
    v: Tensor

    @property
    def frames(self) -> int:
        """P."""
        return self.k.shape[2]

    def first(self, frames: int) -> PromptKV:
        """The keys and values of the first frames."""
        return PromptKV(self.k[:, :, :frames], self.v[:, :, :frames])


class KVCache:
    """Static keys and values of `slots` sequences."""

    def __init__(
        self, config: DiaConfig, slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        decoder, text = config.decoder, config.encoder.max_positions
        own = (slots, ROWS, decoder.kv_heads, decoder.max_positions, decoder.head_dim)
        cross = (slots, decoder.cross_heads, text, decoder.cross_head_dim)

        def allocate(shape: tuple[int, ...]) -> Tensor:
            return torch.zeros((decoder.layers, *shape), device=device, dtype=dtype)

        self.k, self.v = allocate(own), allocate(own)  # [L, S, 2, Hkv, T, D]
        self.text_k, self.text_v = allocate(cross), allocate(cross)  # [L, S, H, Tx, D]
        self.text_lengths = torch.ones(slots, device=device, dtype=torch.long)
        self.max_positions, self.max_text = decoder.max_positions, text

    def clear(self, slot: int) -> None:
        """Zeroes a slot for its next sequence."""
        for kept in (self.k, self.v, self.text_k, self.text_v):
            kept[:, slot] = 0

    def set_text(self, slot: int, keys_values: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keeps the cross-attention keys and values of a slot's text, each [Tx, H, D]."""
        length = 1
        for layer, (key, value) in enumerate(keys_values):
            length = key.shape[0]
            self.text_k[layer, slot, :, :length] = key.transpose(0, 1)
            self.text_v[layer, slot, :, :length] = value.transpose(0, 1)
        self.text_lengths[slot] = length

    def new_prompt(self, frames: int) -> PromptKV:
        """Room for the keys and values of a prompt, outside every slot."""
        layers, _, _, kv_heads, _, head_dim = self.k.shape
        k, v = self.k.new_empty((2, layers, kv_heads, frames, head_dim))
        return PromptKV(k, v)

    def set_prompt(self, slot: int, prompt: PromptKV) -> None:
        """Lays the keys and values of a prompt into a slot's row without text."""
        self.k[:, slot, 0, :, : prompt.frames] = prompt.k
        self.v[:, slot, 0, :, : prompt.frames] = prompt.v

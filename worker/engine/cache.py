"""Keys and values of the running sequences, and how a pass attends to them.

Memory is allocated once, for all slots at their longest. Masks end at a slot's position, so its
old content has no weight; it is zeroed all the same, because nothing outweighs a NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.dia.model import ATTENTION_SCALE

ROWS = 2  # each slot decodes without and with its text
CONTEXT_STEP = 128  # attention reads the cache up to a multiple of this


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
        self.max_text_length = [1] * slots  # the same, known to the host
        self.max_positions = decoder.max_positions

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
        self.max_text_length[slot] = length


class PromptPass:
    """Prefill of one slot: its tokens attend causally to each other from position 0 on."""

    def __init__(self, cache: KVCache, slot: int) -> None:
        self._cache, self._slot = cache, slot

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [2, heads, P, D]
        self._cache.k[layer, self._slot, :, :, : k.shape[2]] = k
        self._cache.v[layer, self._slot, :, :, : v.shape[2]] = v
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=ATTENTION_SCALE, enable_gqa=True
        )
        return attended.transpose(1, 2)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        length = self._cache.max_text_length[self._slot]
        k = self._cache.text_k[layer, self._slot, None, :, :length]
        v = self._cache.text_v[layer, self._slot, None, :, :length]
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, scale=ATTENTION_SCALE)
        return attended.transpose(1, 2)


class StepPass:
    """One decode step: the token of each of the first `width` slots attends to that slot's past.

    Args:
        cache: keys and values.
        positions: [N] position of each slot's token.
        context: how far the longest slot has come; nothing beyond is read.
    """

    def __init__(self, cache: KVCache, positions: Tensor, context: int) -> None:
        width = positions.shape[0]
        self._cache, self._width, self._positions = cache, width, positions
        self._slots = torch.arange(width, device=positions.device)
        self._context = min(-(-context // CONTEXT_STEP) * CONTEXT_STEP, cache.max_positions)
        past = torch.arange(self._context, device=positions.device) <= positions.unsqueeze(1)
        self._mask = past.repeat_interleave(ROWS, 0)[:, None, None]  # [N·2, 1, 1, T]
        self._text = max(cache.max_text_length[:width])
        lengths = cache.text_lengths[:width].unsqueeze(1)
        text = torch.arange(self._text, device=positions.device) < lengths
        self._text_mask = text[:, None, None]  # [N, 1, 1, Tx]

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kv_heads = k.shape[2]
        for cached, new in ((self._cache.k[layer], k), (self._cache.v[layer], v)):
            cached[self._slots, :, :, self._positions] = new.transpose(0, 1)  # [N, 2, Hkv, D]
        past_k = self._cache.k[layer, : self._width, :, :, : self._context].flatten(0, 1)
        past_v = self._cache.v[layer, : self._width, :, :, : self._context].flatten(0, 1)
        # The query heads that share a key-value head stand where queries of one head would.
        rows, head_dim = self._width * ROWS, q.shape[-1]
        grouped = q.transpose(0, 1).reshape(rows, kv_heads, -1, head_dim)  # [N·2, Hkv, G, D]
        attended = F.scaled_dot_product_attention(
            grouped, past_k, past_v, attn_mask=self._mask, scale=ATTENTION_SCALE
        )
        return attended.reshape(self._width, ROWS, -1, head_dim).transpose(0, 1)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        k = self._cache.text_k[layer, : self._width, :, : self._text]
        v = self._cache.text_v[layer, : self._width, :, : self._text]
        attended = F.scaled_dot_product_attention(
            q.transpose(0, 1).transpose(1, 2),
            k,
            v,
            attn_mask=self._text_mask,
            scale=ATTENTION_SCALE,
        )  # [N, H, 1, D]
        return attended.transpose(1, 2).transpose(0, 1)

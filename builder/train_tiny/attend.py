"""A whole batch at once: the encoder over padded texts, and how its decoder attends.

The same maths as `worker.engine.cache`, without a cache. Frames are padded behind their ends only,
so that a causal mask keeps padding from all that counts; texts need a mask of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import starmap

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.train_tiny.guide import HEAD, Guide
from builder.train_tiny.layout import Batch
from worker.dia.layers import rotate
from worker.dia.model import ATTENTION_SCALE, DiaModel, EncoderLayer


class BatchPass:
    """Attention of R rows: causal among a row's frames, and to the row's own text.

    Args:
        keys_values: of each decoder layer, keys and values [R, S, heads, D] of the texts.
        real: [R, S] bool, which of the texts' positions are no padding.
        guide: where to look; `astray` tells how far one head of each layer but the first does not.
    """

    def __init__(
        self, keys_values: Iterator[tuple[Tensor, Tensor]], real: Tensor, guide: Guide
    ) -> None:
        def heads_first(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            return key.transpose(1, 2), value.transpose(1, 2)

        self._text = list(starmap(heads_first, keys_values))
        self._mask = real[:, None, None]  # [R, 1, 1, S]
        self._guide = guide
        self.astray: list[Tensor] = []  # of each guided layer

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=ATTENTION_SCALE, enable_gqa=True
        )
        return attended.transpose(1, 2)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        k, v = self._text[layer]
        q = q.transpose(1, 2)
        if layer > 0:
            scores = q[:, HEAD] @ k[:, HEAD].transpose(1, 2) * ATTENTION_SCALE  # [R, N, S]
            seen = scores.float().masked_fill(~self._mask[:, 0], float("-inf")).softmax(-1)
            self.astray.append(self._guide.astray(seen))
        mask = self._mask.expand(-1, -1, q.shape[2], -1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=ATTENTION_SCALE)
        return attended.transpose(1, 2)


def encode_texts(model: DiaModel, text: Tensor, real: Tensor) -> Tensor:
    """[R, S] padded ids → [R, S, E]; each row as `DiaModel.encode` has it, padding aside."""
    rotary = model.text_rotary[: text.shape[1]]
    x: Tensor = model.encoder.embedding(text)
    for layer in model.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        x = _encode_layer(layer, x, rotary, real[:, None, None])
    normed: Tensor = model.encoder.norm(x)
    return normed


def _encode_layer(layer: EncoderLayer, x: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.attention.project(layer.attention_norm(x))
    q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotary), rotate(k, rotary), v))
    mask = mask.expand(-1, -1, q.shape[2], -1)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=ATTENTION_SCALE)
    x = x + layer.attention.output(attended.transpose(1, 2).flatten(-2))
    residual: Tensor = x + layer.mlp(layer.mlp_norm(x))
    return residual


def hidden_states(model: DiaModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the decoder makes of a batch, all positions at once.

    Returns:
        Hidden states [R, N, H], and the part of the guided heads' attention that goes astray.
    """
    places = torch.arange(batch.text.shape[1], device=batch.text.device)
    real = places < batch.text_lengths.unsqueeze(1)
    encoded = encode_texts(model, batch.text, real)
    attend = BatchPass(model.text_keys_values(encoded), real, batch.guide)
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    return model.decode(batch.tokens, positions, attend), torch.stack(attend.astray).mean()

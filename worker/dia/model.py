"""Dia: a byte encoder and a decoder over codec frames.

    text ids ─ Encoder ─ encoded text ─ text_keys_values ─┐
    codes ─ embed ─ Decoder (self-attention, cross-attention, MLP) ─ logits of 9 channels

Knows the mathematics of one forward pass, for both generations. Does not know where keys and
values are kept: the caller passes an `Attend` that stores and attends.

Guidance runs the decoder twice, with and without the text. Without text every encoder position
holds the same vector, so attention over them returns that vector's value whatever the query: the
unconditional cross-attention is one constant vector a layer, computed once by `prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from worker.dia.config import DiaConfig, EncoderConfig, Generation
from worker.dia.layers import (
    CrossAttention,
    GatedMLP,
    Linear,
    RMSNorm,
    SelfAttention,
    rotary_table,
    rotate,
)

ATTENTION_SCALE = 1.0  # Dia was trained without the usual 1/√d


class Attend(Protocol):
    """How the tokens of one decoder pass attend: to each other, to a cache, to their text."""

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries [R, N, Hq, D] with the new keys and values [R, N, Hkv, D] → [R, N, Hq, D]."""

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        """Queries [R', N, heads, D] of the conditional rows → the same shape."""


class DiaModel(nn.Module):
    """Encoder, decoder and what is derived from their weights once."""

    rotary: Tensor  # [positions, 2, D/2]
    text_rotary: Tensor
    cross_rotary: Tensor
    unconditional_cross: Tensor  # [layers, H]

    def __init__(self, config: DiaConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @torch.no_grad()
    def prepare(self) -> None:
        """Derives tables and constants. Call once, after the weights are loaded."""
        device, config = self.decoder.embedding.weight.device, self.config
        encoder, decoder, theta = config.encoder, config.decoder, config.rope_theta
        longest = max(encoder.max_positions, decoder.max_positions)
        self.rotary = rotary_table(decoder.max_positions, decoder.head_dim, theta).to(device)
        self.text_rotary = rotary_table(encoder.max_positions, encoder.head_dim, theta).to(device)
        self.cross_rotary = rotary_table(longest, decoder.cross_head_dim, theta).to(device)
        nothing = self.encode(torch.zeros(1, dtype=torch.long, device=device))  # [1, E]
        constants = [
            layer.cross_attention.output(layer.cross_attention.project_text(nothing)[1].flatten(1))
            for layer in self.decoder.blocks()
        ]
        self.unconditional_cross = torch.cat(constants)

    def encode(self, ids: Tensor) -> Tensor:
        """Text ids [S] without padding → [S, E]."""
        return self.encode_all([ids])[0]

    def encode_all(self, texts: Sequence[Tensor]) -> list[Tensor]:
        """Texts [S] of any lengths, in one pass → [S, E] each; the padding is seen by nobody."""
        lengths = [text.shape[0] for text in texts]
        ids = pad_sequence(list(texts), batch_first=True)  # [B, S]
        rotary, mask = self.text_rotary[: max(lengths)], None
        if min(lengths) < max(lengths):
            mask = pad_sequence([torch.ones_like(text, dtype=torch.bool) for text in texts], True)
            mask = mask[:, None, None]  # [B, 1, 1, S]
        encoded: Tensor = self.encoder(ids, rotary, mask)
        return [row[:length] for row, length in zip(encoded, lengths, strict=True)]

    def text_keys_values(self, encoded: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """[S, E] → for each decoder layer, keys and values [S, heads, D] of cross-attention."""
        rotary = self.cross_rotary[: encoded.shape[0]]
        for layer in self.decoder.blocks():
            key, value = layer.cross_attention.project_text(encoded)
            yield (rotate(key, rotary) if self._rotates_cross else key), value

    def decode(
        self, tokens: Tensor, positions: Tensor, attend: Attend, unconditional_rows: int = 0
    ) -> Tensor:
        """One pass of the decoder.

        Args:
            tokens: [R, N, C] delayed codes.
            positions: [N], the same for all rows.
            attend: keeps keys and values, and attends.
            unconditional_rows: how many of the R rows, from the first on, have no text.

        Returns:
            [R, N, H] hidden states; `logits` reads them.
        """
        rotary = self.rotary[positions]
        cross_rotary = self.cross_rotary[positions] if self._rotates_cross else None
        x = self.decoder.embed(tokens)
        for index, layer in enumerate(self.decoder.blocks()):
            x = layer.attend_self(x, rotary, index, attend)
            x = layer.attend_text(
                x, cross_rotary, index, attend, self.unconditional_cross, unconditional_rows
            )
            x = x + layer.mlp(layer.mlp_norm(x))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """[…, H] → […, C, V] float32."""
        logits: Tensor = self.decoder.logits(self.decoder.norm(x)).float()
        return logits.view(*x.shape[:-1], self.config.decoder.channels, -1)

    @property
    def _rotates_cross(self) -> bool:
        return self.config.generation is Generation.APRIL


class Encoder(nn.Module):
    """Bytes to vectors; every position sees every other."""

    def __init__(self, config: DiaConfig) -> None:
        super().__init__()
        encoder = config.encoder
        self.embedding = nn.Embedding(encoder.vocabulary, encoder.hidden)
        self.layers = nn.ModuleList(
            EncoderLayer(encoder, config.norm_eps) for _ in range(encoder.layers)
        )
        self.norm = RMSNorm(encoder.hidden, config.norm_eps)

    def forward(self, ids: Tensor, rotary: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)  # [B, S, E]
        for layer in self.layers:
            x = layer(x, rotary, mask)
        normed: Tensor = self.norm(x)
        return normed


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and MLP, each with a residual."""

    def __init__(self, encoder: EncoderConfig, eps: float) -> None:
        super().__init__()
        heads = encoder.heads
        self.attention_norm = RMSNorm(encoder.hidden, eps)
        self.attention = SelfAttention(encoder.hidden, heads, heads, encoder.head_dim)
        self.mlp_norm = RMSNorm(encoder.hidden, eps)
        self.mlp = GatedMLP(encoder.hidden, encoder.intermediate)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.attention.project(self.attention_norm(x))  # [B, S, heads, D]
        q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=ATTENTION_SCALE)
        x = x + self.attention.output(attended.transpose(1, 2).flatten(-2))
        residual: Tensor = x + self.mlp(self.mlp_norm(x))
        return residual


class Decoder(nn.Module):
    """The decoder's weights; `DiaModel.decode` is its forward pass."""

    def __init__(self, config: DiaConfig) -> None:
        super().__init__()
        decoder = config.decoder
        self.channels, self.vocabulary = decoder.channels, decoder.vocabulary
        self.embedding = nn.Embedding(decoder.channels * decoder.vocabulary, decoder.hidden)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(decoder.layers))
        self.norm = RMSNorm(decoder.hidden, config.norm_eps)
        self.logits = Linear(decoder.hidden, decoder.channels * decoder.vocabulary)

    def blocks(self) -> Iterator[DecoderLayer]:
        """The layers, first to last."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def embed(self, tokens: Tensor) -> Tensor:
        """[…, C] → […, H], the sum over the channels' own tables."""
        rows = self.channels * self.vocabulary
        offsets = torch.arange(0, rows, self.vocabulary, device=tokens.device)
        embedded: Tensor = self.embedding(tokens + offsets)
        return embedded.sum(-2)


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and MLP, each with a residual."""

    def __init__(self, config: DiaConfig) -> None:
        super().__init__()
        decoder, eps = config.decoder, config.norm_eps
        self.self_norm = RMSNorm(decoder.hidden, eps)
        self.self_attention = SelfAttention(
            decoder.hidden, decoder.query_heads, decoder.kv_heads, decoder.head_dim
        )
        self.cross_norm = RMSNorm(decoder.hidden, eps)
        self.cross_attention = CrossAttention(
            decoder.hidden, config.encoder.hidden, decoder.cross_heads, decoder.cross_head_dim
        )
        self.mlp_norm = RMSNorm(decoder.hidden, eps)
        self.mlp = GatedMLP(decoder.hidden, decoder.intermediate)

    def attend_self(self, x: Tensor, rotary: Tensor, index: int, attend: Attend) -> Tensor:
        """[R, N, H] → [R, N, H], with the residual."""
        q, k, v = self.self_attention.project(self.self_norm(x))
        attended = attend.self_attention(index, rotate(q, rotary), rotate(k, rotary), v)
        residual: Tensor = x + self.self_attention.output(attended.flatten(-2))
        return residual

    def attend_text(
        self,
        x: Tensor,
        rotary: Tensor | None,
        index: int,
        attend: Attend,
        unconditional: Tensor,
        unconditional_rows: int,
    ) -> Tensor:
        """[R, N, H] → [R, N, H], with the residual; rows without text get their constant."""
        blind, seeing = x[:unconditional_rows], x[unconditional_rows:]
        q = self.cross_attention.project_query(self.cross_norm(seeing))
        if rotary is not None:
            q = rotate(q, rotary)
        attended = self.cross_attention.output(attend.cross_attention(index, q).flatten(-2))
        return torch.cat([blind + unconditional[index], seeing + attended])

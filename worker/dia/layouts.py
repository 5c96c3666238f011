"""The two published layouts of Dia's weights, tensor by tensor.

Native (nari-labs/dia): kernels stored in × out with the heads kept apart, projections separate.
transformers: the same matrices as out × in, layers prefixed `model.`. Ours: out × in with
queries, keys and values (and the channels' embedding tables) joined, so each tensor of a file is
a block of rows of one of our parameters. A `Piece` says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from worker.dia.config import DiaConfig


class Layout(str, Enum):
    """How a file names and shapes the weights."""

    NATIVE = "native"
    TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Piece:
    """One tensor of a file, and the rows of our parameter that it fills."""

    name: str
    shape: tuple[int, ...]  # in the file
    parameter: str
    first_row: int = 0
    kernel: bool = False  # stored in × out

    def from_file(self, tensor: Tensor) -> Tensor:
        """The file's tensor as rows of the parameter."""
        if not self.kernel:
            return tensor
        outputs = self._outputs()
        return tensor.reshape(-1, outputs).T

    def to_file(self, parameter: Tensor) -> Tensor:
        """The parameter's rows as the file's tensor."""
        if parameter.dim() == 1:
            return parameter
        rows = parameter[self.first_row : self.first_row + self.rows]
        return (rows.T.reshape(self.shape) if self.kernel else rows).contiguous()

    @property
    def rows(self) -> int:
        """How many rows of the parameter the tensor fills."""
        return self._outputs() if self.kernel else self.shape[0]

    def _outputs(self) -> int:
        # An output projection joins its heads on the way in, every other kernel on the way out.
        if self.name.endswith(("o_proj.weight", "wo.weight")):
            return self.shape[-1]
        return math.prod(self.shape[1:])


def pieces_of(config: DiaConfig, layout: Layout) -> Iterator[Piece]:
    """Every tensor that a checkpoint of these dimensions holds."""
    yield from _NativePieces(config) if layout is Layout.NATIVE else _TransformersPieces(config)


class _NativePieces:
    def __init__(self, config: DiaConfig) -> None:
        self.config = config

    def __iter__(self) -> Iterator[Piece]:
        encoder, decoder = self.config.encoder, self.config.decoder
        table = (encoder.vocabulary, encoder.hidden)
        yield Piece("encoder.embedding.weight", table, "encoder.embedding.weight")
        for i in range(encoder.layers):
            yield from self._encoder_layer(f"encoder.layers.{i}")
        yield Piece("encoder.norm.weight", (encoder.hidden,), "encoder.norm.weight")
        for c in range(decoder.channels):
            yield Piece(
                f"decoder.embeddings.{c}.weight",
                (decoder.vocabulary, decoder.hidden),
                "decoder.embedding.weight",
                first_row=c * decoder.vocabulary,
            )
        for i in range(decoder.layers):
            yield from self._decoder_layer(f"decoder.layers.{i}")
        yield Piece("decoder.norm.weight", (decoder.hidden,), "decoder.norm.weight")
        logits = (decoder.hidden, decoder.channels, decoder.vocabulary)
        yield Piece("decoder.logits_dense.weight", logits, "decoder.logits.weight", kernel=True)

    def _encoder_layer(self, at: str) -> Iterator[Piece]:
        encoder = self.config.encoder
        heads, dim, hidden = encoder.heads, encoder.head_dim, encoder.hidden
        yield Piece(f"{at}.pre_sa_norm.weight", (hidden,), f"{at}.attention_norm.weight")
        yield Piece(f"{at}.post_sa_norm.weight", (hidden,), f"{at}.mlp_norm.weight")
        yield from self._attention(
            f"{at}.self_attention", f"{at}.attention", hidden, heads, heads, dim
        )
        yield from self._mlp(f"{at}.mlp", hidden, encoder.intermediate)

    def _decoder_layer(self, at: str) -> Iterator[Piece]:
        decoder, hidden = self.config.decoder, self.config.decoder.hidden
        for theirs, ours in (("sa", "self"), ("ca", "cross"), ("mlp", "mlp")):
            yield Piece(f"{at}.pre_{theirs}_norm.weight", (hidden,), f"{at}.{ours}_norm.weight")
        yield from self._attention(
            f"{at}.self_attention",
            f"{at}.self_attention",
            hidden,
            decoder.query_heads,
            decoder.kv_heads,
            decoder.head_dim,
        )
        yield from self._cross_attention(f"{at}.cross_attention")
        yield from self._mlp(f"{at}.mlp", hidden, decoder.intermediate)

    def _attention(
        self, theirs: str, ours: str, hidden: int, heads: int, kv_heads: int, dim: int
    ) -> Iterator[Piece]:
        row = 0
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            shape, qkv = (hidden, count, dim), f"{ours}.qkv.weight"
            yield Piece(f"{theirs}.{name}_proj.weight", shape, qkv, first_row=row, kernel=True)
            row += count * dim
        output = (heads, dim, hidden)
        yield Piece(f"{theirs}.o_proj.weight", output, f"{ours}.output.weight", kernel=True)

    def _cross_attention(self, at: str) -> Iterator[Piece]:
        decoder, text = self.config.decoder, self.config.encoder.hidden
        heads, dim = decoder.cross_heads, decoder.cross_head_dim
        query, key_value = f"{at}.query.weight", f"{at}.key_value.weight"
        source = (text, heads, dim)
        yield Piece(f"{at}.q_proj.weight", (decoder.hidden, heads, dim), query, kernel=True)
        yield Piece(f"{at}.k_proj.weight", source, key_value, kernel=True)
        yield Piece(f"{at}.v_proj.weight", source, key_value, first_row=heads * dim, kernel=True)
        output = (heads, dim, decoder.hidden)
        yield Piece(f"{at}.o_proj.weight", output, f"{at}.output.weight", kernel=True)

    def _mlp(self, at: str, hidden: int, intermediate: int) -> Iterator[Piece]:
        joined = (hidden, 2, intermediate)
        yield Piece(f"{at}.wi_fused.weight", joined, f"{at}.gate_up.weight", kernel=True)
        yield Piece(f"{at}.wo.weight", (intermediate, hidden), f"{at}.down.weight", kernel=True)


class _TransformersPieces(_NativePieces):
    """The native pieces under transformers' names, as out × in matrices."""

    def __iter__(self) -> Iterator[Piece]:
        decoder = self.config.decoder
        table = (decoder.channels * decoder.vocabulary, decoder.hidden)
        yield Piece("model.decoder.embeddings.embed.weight", table, "decoder.embedding.weight")
        for piece in super().__iter__():
            if piece.parameter == "decoder.embedding.weight":
                continue
            yield Piece(
                _transformers_name(piece.name),
                _as_matrix(piece),
                piece.parameter,
                piece.first_row,
            )


def _as_matrix(piece: Piece) -> tuple[int, ...]:
    if not piece.kernel:
        return piece.shape
    return piece.rows, math.prod(piece.shape) // piece.rows


def _transformers_name(name: str) -> str:
    if name == "decoder.logits_dense.weight":
        return "logits_dense.weight"
    renamed = name.replace("mlp.wi_fused", "mlp.gate_up_proj").replace("mlp.wo", "mlp.down_proj")
    return f"model.{renamed}"

"""One decode step of several slots: the same mathematics as `DiaModel.decode`, in few kernels.

Knows tensors of fixed addresses only, so that a device can record it once and play it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worker.dia.config import Generation
from worker.dia.layers import RMSNorm
from worker.dia.model import DiaModel
from worker.engine.cache import KVCache
from worker.engine.footprint import ROWS
from worker.engine.kernels.ops import Ops, Reach
from worker.engine.state import SlotState


@dataclass(frozen=True)
class StepShape:
    """What a step computes, and how far it reads; all of it known to the host.

    Attributes:
        width: slots, from the first on; finished ones among them stay as they are.
        context: more than the position of every running slot.
        text: at least the text length of every running slot.
        widest: at least the top_k of every running slot.
    """

    width: int
    context: int
    text: int
    widest: int


class DecodeStep:
    """Embeds the slots' tokens, runs the decoder, draws, and moves the slots on."""

    def __init__(self, model: DiaModel, cache: KVCache, state: SlotState, ops: Ops) -> None:
        self._model, self._cache, self._state, self._ops = model, cache, state, ops
        self._layers = list(model.decoder.blocks())
        self._rotates_cross = model.config.generation is Generation.APRIL

    def __call__(self, shape: StepShape) -> Tensor:
        """Decodes one position. Does not wait for the device.

        Returns:
            [2, N, C, V] logits without and with the text.
        """
        state, width = self._state, shape.width
        logits = self._logits(shape)
        state.commit(self._ops.draw(logits, state.sampling(width, shape.widest)))
        return logits

    def _logits(self, shape: StepShape) -> Tensor:
        model, width = self._model, shape.width
        positions = self._state.position[:width]
        reach = Reach(positions, self._cache.text_lengths[:width], shape.context, shape.text)
        rotary = model.rotary[positions]  # [N, 2, D/2]
        cross_rotary = model.cross_rotary[positions] if self._rotates_cross else None
        x = model.decoder.embed(self._state.tokens(width)).repeat(ROWS, 1)  # [M, H]
        first = self._layers[0].self_norm
        normed = self._ops.norm(x, first.weight, first.eps)
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, normed, rotary, reach)
            normed = self._add(x, attended, None, layer.cross_norm)
            attended = self._attend_text(index, normed[width:], cross_rotary, reach)
            normed = self._add(x, attended, model.unconditional_cross[index], layer.mlp_norm)
            inner = self._ops.swiglu(self._ops.linear(normed, layer.mlp.gate_up.weight))
            update = self._ops.linear(inner, layer.mlp.down.weight)
            normed = self._add(x, update, None, self._norm_after(index))
        logits = self._ops.linear(normed, model.decoder.logits.weight)
        return logits.view(ROWS, width, model.config.decoder.channels, -1)

    def _attend(self, index: int, x: Tensor, rotary: Tensor, reach: Reach) -> Tensor:
        attention = self._layers[index].self_attention
        k, v = self._cache.k[index], self._cache.v[index]
        qkv = self._ops.linear(x, attention.qkv.weight)
        q = self._ops.rotate_store(qkv, rotary, reach, k, v)
        return self._ops.linear(self._ops.attend(q, k, v, reach), attention.output.weight)

    def _attend_text(self, index: int, x: Tensor, rotary: Tensor | None, reach: Reach) -> Tensor:
        attention = self._layers[index].cross_attention
        k, v = self._cache.text_k[index], self._cache.text_v[index]
        q = self._ops.linear(x, attention.query.weight)
        attended = self._ops.attend_text(q, rotary, k, v, reach)
        return self._ops.linear(attended, attention.output.weight)

    def _norm_after(self, index: int) -> RMSNorm:
        last = index + 1 == len(self._layers)
        return self._model.decoder.norm if last else self._layers[index + 1].self_norm

    def _add(self, x: Tensor, update: Tensor, constant: Tensor | None, norm: RMSNorm) -> Tensor:
        return self._ops.add_norm(x, update, constant, norm.weight, norm.eps)

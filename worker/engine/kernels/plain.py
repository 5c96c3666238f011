"""The operations of a decode step in plain torch: what they mean, on every device.

Shapes: M rows of N slots (see `ops.py`), H hidden size, D head size, G query heads for each of Hkv
key-value heads, S slots of the cache, T its positions, Tx those of the text, C channels, V ids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.dia.layers import rms_norm, rotate
from worker.dia.model import ATTENTION_SCALE
from worker.engine.footprint import ROWS
from worker.engine.kernels.ops import Ops, Reach
from worker.engine.sampling import Sampler


def plain_ops(config: DiaConfig, device: torch.device) -> Ops:
    """All operations in plain torch."""
    return Ops(
        linear=F.linear,
        norm=rms_norm,
        add_norm=add_norm,
        swiglu=swiglu,
        rotate_store=rotate_store,
        attend=attend,
        attend_text=attend_text,
        draw=Sampler(config, device).draw,
    )


def add_norm(
    x: Tensor, update: Tensor, constant: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    """Adds to the residual stream in place, and normalises it.

    Args:
        x: [M, H], changed: its last U rows get `update`, those before get `constant`.
        update: [U, H].
        constant: [H], where U < M.
        weight: [H] of the norm.
        eps: of the norm.

    Returns:
        [M, H]. The sum is rounded to the type of `x` before it is normalised.
    """
    without = x.shape[0] - update.shape[0]
    if constant is not None:
        x[:without] += constant
    x[without:] += update
    return rms_norm(x, weight, eps)


def swiglu(gate_up: Tensor) -> Tensor:
    """[M, 2·F], gate first → silu(gate) · up, [M, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate_store(qkv: Tensor, rotary: Tensor, reach: Reach, k: Tensor, v: Tensor) -> Tensor:
    """Rotates queries and keys to their slot's position, and keeps keys and values there.

    Args:
        qkv: [M, (Hkv·G + 2·Hkv)·D]: queries, keys, values.
        rotary: [N, 2, D/2] cosines and sines of each slot's position.
        reach: the positions.
        k: [S, 2, Hkv, T, D], written at each slot's position.
        v: the same.

    Returns:
        [M, Hkv·G·D] rotated queries.
    """
    kv_heads, head_dim = k.shape[2], k.shape[4]
    heads = qkv.view(ROWS, reach.width, -1, head_dim)
    queries = heads.shape[2] - 2 * kv_heads
    q = heads[:, :, :queries]
    key, value = heads[:, :, queries:].chunk(2, dim=2)
    k[reach.slots, :, :, reach.positions] = rotate(key, rotary).transpose(0, 1)  # [N, 2, Hkv, D]
    v[reach.slots, :, :, reach.positions] = value.transpose(0, 1)
    return rotate(q, rotary).reshape(ROWS * reach.width, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    """Grouped-query attention of each row to the past of its slot; the scale is 1.

    Args:
        q: [M, Hkv·G·D].
        k: [S, 2, Hkv, T, D].
        v: the same.
        reach: positions up to a slot's own are seen.

    Returns:
        [M, Hkv·G·D].
    """
    width, kv_heads, head_dim = reach.width, k.shape[2], k.shape[4]
    past_k = k[:width, :, :, : reach.context].flatten(0, 1)
    past_v = v[:width, :, :, : reach.context].flatten(0, 1)
    # The query heads that share a key-value head stand where queries of one head would.
    by_slot = q.view(ROWS, width, kv_heads, -1, head_dim).transpose(0, 1).flatten(0, 1)
    attended = F.scaled_dot_product_attention(
        by_slot, past_k, past_v, attn_mask=reach.past_mask, scale=ATTENTION_SCALE
    )  # [N·2, Hkv, G, D]
    return attended.view(width, ROWS, -1).transpose(0, 1).reshape(q.shape)


def attend_text(q: Tensor, rotary: Tensor | None, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    """Attention of each slot's row to its text; the scale is 1.

    Args:
        q: [N, heads·D].
        rotary: [N, 2, D/2], where the generation rotates queries here.
        k: [S, heads, Tx, D].
        v: the same.
        reach: the texts' lengths.

    Returns:
        [N, heads·D].
    """
    heads = q.view(reach.width, -1, k.shape[3])  # [N, heads, D]
    if rotary is not None:
        heads = rotate(heads, rotary)
    attended = F.scaled_dot_product_attention(
        heads.unsqueeze(2),
        k[: reach.width, :, : reach.text],
        v[: reach.width, :, : reach.text],
        attn_mask=reach.text_mask,
        scale=ATTENTION_SCALE,
    )  # [N, heads, 1, D]
    return attended.reshape(q.shape)

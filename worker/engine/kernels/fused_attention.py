"""Attention of single queries to a cache, split over the sequence, in Triton.

A decode step reads every key and value once and computes little with them, so its time is that of
the memory: all multiprocessors have to read, also where there is one slot, and nothing beyond a
slot's own position may be read. So the places of each (row, key-value head) are cut into splits of
equal length, one program each; a program beyond the slot's position returns at once; a second
kernel joins what the splits found. Short sequences are left whole, which spares the second kernel.

The graph of a step is captured once and replayed for all positions: the grid depends on the width
and the context, the work on the positions in the tensor. `plain.py` says what is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.kernels.ops import Reach

_SHORT = 256  # places that one program reads sooner than two kernels start
_USUAL = 1024  # places for which the splits are dealt out
_WAVES = 4  # programs for each multiprocessor: texts and pasts of a batch differ in length
_TENSOR_CORE = 16  # the fewest rows and columns that `tl.dot` multiplies
_JOINED = 16  # splits that the joining kernel reads at once


class FusedAttention:
    """Attention to the past and to the text, for a device of so many multiprocessors."""

    def __init__(self, processors: int) -> None:
        self._programs = _WAVES * processors

    def attend(self, q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
        """`plain.attend`: [M, Hkv·G·D] → [M, Hkv·G·D]."""
        return self._run(q, None, k, v, reach.positions, 1, min(reach.context, k.shape[3]))

    def attend_text(
        self, q: Tensor, rotary: Tensor | None, k: Tensor, v: Tensor, reach: Reach
    ) -> Tensor:
        """`plain.attend_text`: [N, heads·D] → [N, heads·D]."""
        # One row for each slot: a cache whose second dimension, the row, is 1.
        k, v = k.unsqueeze(1), v.unsqueeze(1)
        return self._run(q, rotary, k, v, reach.text_lengths, 0, min(reach.text, k.shape[3]))

    def split_length(self, pairs: int, most: int) -> int:
        """Places that one program reads, for so many (row, key-value head) pairs.

        It depends on the places that the cache has, and not on those that a step reads: so the
        sums of a slot are the same however far its neighbours have come.
        """
        if most <= _SHORT:
            return most
        splits = -(-self._programs // pairs)
        return 64 * -(-min(most, _USUAL) // (64 * splits))

    def _run(
        self,
        q: Tensor,
        rotary: Tensor | None,
        k: Tensor,
        v: Tensor,
        seen: Tensor,
        inclusive: int,
        places: int,
    ) -> Tensor:
        """Attends to the first `seen + inclusive` places of each slot, of `places` at most."""
        width, (kv_heads, head_dim) = seen.shape[0], (k.shape[2], k.shape[4])
        assert q.is_contiguous() and k.stride() == v.stride()
        assert k.stride()[3:] == (head_dim, 1)
        pairs, heads = q.shape[0] * kv_heads, q.shape[1] // head_dim
        group = heads // kv_heads
        assert group * kv_heads == heads
        length = self.split_length(pairs, k.shape[3])
        splits = -(-places // length)
        out = torch.empty_like(q)
        shape = (pairs, splits, group) if splits > 1 else (0,)
        found = torch.empty(*shape, head_dim, dtype=torch.float32, device=q.device)
        weights = torch.empty(*shape, 2, dtype=torch.float32, device=q.device)
        block = max(_TENSOR_CORE, triton.next_power_of_2(head_dim))
        half = q.element_size() == 2
        _attend_kernel[(pairs, splits)](
            q,
            q if rotary is None else rotary.contiguous(),
            k,
            v,
            seen,
            out,
            found,
            weights,
            width,
            inclusive,
            places,
            length,
            splits,
            *k.stride()[:3],
            kv_heads,
            group,
            head_dim,
            max(_TENSOR_CORE, triton.next_power_of_2(group)),
            block,
            64 if half else 32,
            rotary is not None,
            num_warps=4 if half else 8,  # float32 takes twice the registers
            num_stages=3 if half else 1,
        )
        if splits > 1:
            _join_kernel[(q.shape[0] * heads,)](
                found,
                weights,
                seen,
                out,
                width,
                inclusive,
                places,
                length,
                splits,
                heads,
                group,
                head_dim,
                block,
                _JOINED,
                num_warps=4,
            )
        return out


@triton.jit
def _rotated(q, query, rotary, lanes, inside, HEAD_DIM: tl.constexpr):
    """The queries at `q`, which are `query`, rotated; [queries, D]."""
    HALF: tl.constexpr = HEAD_DIM // 2
    angle = lanes % HALF
    cos = tl.load(rotary + angle, mask=lanes < HEAD_DIM, other=0.0)
    sin = tl.load(rotary + HALF + angle, mask=lanes < HEAD_DIM, other=0.0)
    sin = tl.where(lanes < HALF, -sin, sin)
    other = tl.load(q + ((lanes + HALF) % HEAD_DIM)[None, :], mask=inside, other=0.0)
    x, y = query.to(tl.float32), other.to(tl.float32)
    return (x * cos[None, :] + y * sin[None, :]).to(query.dtype)


@triton.jit(do_not_specialize=["width", "inclusive", "places", "length", "splits"])
def _attend_kernel(
    q,
    rotary,
    k,
    v,
    seen,
    out,
    found,
    weights,
    width,
    inclusive,
    places,
    length,
    splits,
    slot_stride,
    group_stride,
    head_stride,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    LANES: tl.constexpr,
    PLACES: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """One split of one key-value head of one row, for all queries that share the head."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    pair, split = tl.program_id(0), tl.program_id(1)
    row, kv_head = pair // KV_HEADS, pair % KV_HEADS
    slot = row % width
    visible = tl.minimum(tl.load(seen + slot) + inclusive, places).to(tl.int32)
    begin = split * length
    if (split > 0) & (begin >= visible):
        return
    end = tl.minimum(begin + length, visible)
    members, lanes = tl.arange(0, QUERIES), tl.arange(0, LANES)
    inside = (members < GROUP)[:, None] & (lanes < HEAD_DIM)[None, :]
    heads = (pair * GROUP + members)[:, None]
    query = tl.load(q + heads * HEAD_DIM + lanes[None, :], mask=inside, other=0.0)
    if ROTATE:
        angles = rotary + slot * HEAD_DIM
        query = _rotated(q + heads * HEAD_DIM, query, angles, lanes, inside, HEAD_DIM)

    start = slot.to(tl.int64) * slot_stride + (row // width) * group_stride + kv_head * head_stride
    steps = tl.arange(0, PLACES)
    offsets = steps[:, None] * HEAD_DIM + lanes[None, :]
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    mass = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, LANES], tl.float32)
    for at in range(begin, end, PLACES):
        lived = steps < end - at
        read = lived[:, None] & (lanes < HEAD_DIM)[None, :]
        key = tl.load(k + start + at * HEAD_DIM + offsets, mask=read, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * LOG2_E
        scores = tl.where(lived[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(highest - higher)
        mass = mass * fade + tl.sum(shares, 1)
        value = tl.load(v + start + at * HEAD_DIM + offsets, mask=read, other=0.0)
        sums = sums * fade[:, None]
        sums = tl.dot(shares.to(value.dtype), value, sums, input_precision="ieee")
        highest = higher

    if splits == 1:
        whole = tl.where(mass == 0.0, 1.0, mass)
        result = (sums / whole[:, None]).to(out.dtype.element_ty)
        tl.store(out + heads * HEAD_DIM + lanes[None, :], result, mask=inside)
    else:
        parts = (pair * splits + split) * GROUP + members
        tl.store(found + parts[:, None] * HEAD_DIM + lanes[None, :], sums, mask=inside)
        tl.store(weights + parts * 2, highest, mask=members < GROUP)
        tl.store(weights + parts * 2 + 1, mass, mask=members < GROUP)


@triton.jit(
    do_not_specialize=["width", "inclusive", "places", "length", "splits", "heads", "group"]
)
def _join_kernel(
    found,
    weights,
    seen,
    out,
    width,
    inclusive,
    places,
    length,
    splits,
    heads,
    group,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One query head of one row: its splits' results in the shares of their masses."""
    query = tl.program_id(0)
    slot = (query // heads) % width
    visible = tl.minimum(tl.load(seen + slot) + inclusive, places).to(tl.int32)
    used = tl.maximum(tl.cdiv(visible, length), 1)  # the first split always ran
    lanes, offsets = tl.arange(0, LANES), tl.arange(0, SPLITS)
    highest = float("-inf")
    mass = 0.0
    sums = tl.zeros([LANES], tl.float32)
    for at in range(0, used, SPLITS):
        split = at + offsets
        ran = split < used
        parts = ((query // group) * splits + split) * group + query % group
        high = tl.load(weights + parts * 2, mask=ran, other=float("-inf"))
        masses = tl.load(weights + parts * 2 + 1, mask=ran, other=0.0)
        read = ran[:, None] & (lanes < HEAD_DIM)[None, :]
        part = tl.load(found + parts[:, None] * HEAD_DIM + lanes[None, :], mask=read, other=0.0)
        higher = tl.maximum(highest, tl.max(high, 0))
        # Where nothing was seen yet, both are −∞, and their difference is no number.
        fade = tl.where(highest == higher, 1.0, tl.exp2(highest - higher))
        scale = tl.where(high == higher, 1.0, tl.exp2(high - higher))
        mass = mass * fade + tl.sum(masses * scale, 0)
        sums = sums * fade + tl.sum(part * scale[:, None], 0)
        highest = higher
    result = sums / tl.where(mass == 0.0, 1.0, mass)
    tl.store(out + query * HEAD_DIM + lanes, result.to(out.dtype.element_ty), mask=lanes < HEAD_DIM)

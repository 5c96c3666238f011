"""Normalisation, residual, SwiGLU and rotary positions, each one kernel in Triton.

A step gives these kernels 2 to 64 rows of a few KB, so that what counts is how soon one is done:
a program takes a row, or a part of one, and reads it with one 16-byte load a thread. `plain.py`
says what each operation means.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.footprint import ROWS
from worker.engine.kernels.ops import Reach

_WIDE = 8  # warps that read 2048 numbers of two bytes with one load a thread
_SWIGLU_BLOCK = 512


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`plain.norm`: [M, H] → [M, H]."""
    x = x.contiguous()
    hidden = x.shape[-1]
    out = torch.empty_like(x)
    _norm_kernel[(x.numel() // hidden,)](
        x, weight, out, eps, hidden, triton.next_power_of_2(hidden), num_warps=_WIDE
    )
    return out


def add_norm(
    x: Tensor, update: Tensor, constant: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    """`plain.add_norm`: changes `x`, and returns it normalised."""
    rows, hidden = x.shape
    without = rows - update.shape[0]
    assert x.is_contiguous()
    assert constant is not None or not without
    out = torch.empty_like(x)
    _add_norm_kernel[(rows,)](
        x,
        update.contiguous(),
        update if constant is None else constant,
        weight,
        out,
        without,
        eps,
        hidden,
        triton.next_power_of_2(hidden),
        num_warps=_WIDE,
    )
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """`plain.swiglu`: [M, 2·F] → [M, F]."""
    gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, size)
    _swiglu_kernel[(rows, triton.cdiv(size, _SWIGLU_BLOCK))](
        gate_up, out, size, _SWIGLU_BLOCK, num_warps=2
    )
    return out


def rotate_store(qkv: Tensor, rotary: Tensor, reach: Reach, k: Tensor, v: Tensor) -> Tensor:
    """`plain.rotate_store`: queries out, keys and values into the cache."""
    _, _, kv_heads, places, head_dim = k.shape
    heads = qkv.shape[1] // head_dim
    queries = heads - 2 * kv_heads
    assert k.stride() == v.stride()
    assert k.stride()[3:] == (head_dim, 1)
    out = qkv.new_empty(qkv.shape[0], queries * head_dim)
    _rotate_store_kernel[(ROWS * reach.width, heads)](
        qkv.contiguous(),
        rotary.contiguous(),
        reach.positions,
        out,
        k,
        v,
        reach.width,
        places,
        *k.stride()[:3],
        queries,
        kv_heads,
        head_dim,
        triton.next_power_of_2(head_dim // 2),
        num_warps=1,
    )
    return out


@triton.jit
def _normed(x, weight, lanes, inside, eps, SIZE: tl.constexpr):
    """A row of float32 over its root mean square, times the weights."""
    scale = tl.rsqrt(tl.sum(x * x) / SIZE + eps)
    return x * scale * tl.load(weight + lanes, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm_kernel(x, weight, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    inside = lanes < SIZE
    offsets = tl.program_id(0) * SIZE + lanes
    row = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    normed = _normed(row, weight, lanes, inside, eps, SIZE)
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["without"])
def _add_norm_kernel(
    x, update, constant, weight, out, without, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < SIZE
    offsets = row * SIZE + lanes
    if row < without:
        added = tl.load(constant + lanes, mask=inside, other=0.0).to(tl.float32)
    else:
        added = tl.load(update + offsets - without * SIZE, mask=inside, other=0.0).to(tl.float32)
    before = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    after = (before + added).to(x.dtype.element_ty)
    tl.store(x + offsets, after, mask=inside)
    normed = _normed(after.to(tl.float32), weight, lanes, inside, eps, SIZE)
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < SIZE
    source = gate_up + row * 2 * SIZE + lanes
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + SIZE, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty)  # torch rounds here, too
    product = opened.to(tl.float32) * up
    tl.store(out + row * SIZE + lanes, product.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["width", "places"])
def _rotate_store_kernel(
    qkv,
    rotary,
    positions,
    out,
    k,
    v,
    width,
    places,
    slot_stride,
    group_stride,
    head_stride,
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one row: a query, a key or a value."""
    HALF: tl.constexpr = HEAD_DIM // 2
    row, head = tl.program_id(0), tl.program_id(1)
    slot = row % width
    lanes = tl.arange(0, BLOCK)
    inside = lanes < HALF
    source = qkv + (row * (QUERIES + 2 * KV_HEADS) + head) * HEAD_DIM + lanes
    first = tl.load(source, mask=inside)
    second = tl.load(source + HALF, mask=inside)
    if head < QUERIES + KV_HEADS:
        cos = tl.load(rotary + slot * HEAD_DIM + lanes, mask=inside)
        sin = tl.load(rotary + slot * HEAD_DIM + HALF + lanes, mask=inside)
        x, y = first.to(tl.float32), second.to(tl.float32)
        first = (x * cos - y * sin).to(first.dtype)
        second = (y * cos + x * sin).to(second.dtype)
    if head < QUERIES:
        target = out + (row * QUERIES + head) * HEAD_DIM + lanes
        tl.store(target, first, mask=inside)
        tl.store(target + HALF, second, mask=inside)
    else:
        position = tl.load(positions + slot)
        kept = inside & (position >= 0) & (position < places)
        kv_head = (head - QUERIES) % KV_HEADS
        place = slot.to(tl.int64) * slot_stride + (row // width) * group_stride
        place += kv_head * head_stride + position * HEAD_DIM
        if head < QUERIES + KV_HEADS:
            tl.store(k + place + lanes, first, mask=kept)
            tl.store(k + place + HALF + lanes, second, mask=kept)
        else:
            tl.store(v + place + lanes, first, mask=kept)
            tl.store(v + place + HALF + lanes, second, mask=kept)

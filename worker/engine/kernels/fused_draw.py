"""From a step's logits to its codes, in one kernel in Triton: one program a slot and channel.

The rules are `Sampler`'s, in its order and with its roundings, so that both draw the same code;
only where a chance falls within rounding of the boundary between two codes may they differ.

Nothing is sorted. Top-k, top-p and the draw itself ask the same question: which is the highest key
such that the keys from there up weigh more than a limit? (Weights of 1 and the limit k − 1: the
k-th key. Masses and the limit p: the last code of the nucleus. Its masses and a share of them: the
code drawn.) It is answered by halving the range until one key is left, which takes about 15 sums
among 1028 random keys, 10 among 50, and never more than 43. Sorting 2048 keys of 64 bits takes 66
exchanges, each of them dearer than a sum, and once more for every other order; the compiler unrolls
them into 11,000 instructions and needs 15 seconds for that, where the loops need one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.dia.config import DiaConfig, Generation
from worker.engine.sampling import APRIL_EOS_FACTOR, COLDEST, NO_CODE, SamplingBatch


class FusedDraw:
    """Draws the codes of one step for a checkpoint's generation."""

    def __init__(self, config: DiaConfig) -> None:
        self._eos = config.eos_id
        self._june = config.generation is Generation.JUNE

    def __call__(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """`Sampler.draw`: [2, N, C, V] → [N, C]."""
        _, width, channels, vocabulary = logits.shape
        codes = torch.empty(width, channels, dtype=torch.int64, device=logits.device)
        _draw_kernel[(width, channels)](
            logits.contiguous(),
            batch.cfg_scale,
            batch.temperature,
            batch.top_p,
            batch.top_k,
            batch.seed,
            batch.step,
            codes,
            width,
            channels,
            vocabulary,
            triton.next_power_of_2(vocabulary),
            self._eos,
            self._june,
            APRIL_EOS_FACTOR,
            COLDEST,
            NO_CODE,
            num_warps=8,
            enable_fp_fusion=False,  # torch rounds products before it adds to them
        )
        return codes


@triton.jit
def _keys_of(scores, ids, BLOCK: tl.constexpr):
    """Integers that order like (score, lower id first) and are never equal; see `sampling.py`."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    return ordered * BLOCK + (BLOCK - 1 - ids)


@triton.jit
def _id_of(key, BLOCK: tl.constexpr):
    """The id that `_keys_of` was given."""
    return BLOCK - 1 - (key & (BLOCK - 1))


@triton.jit
def _weigh(amounts, chosen, COUNTS: tl.constexpr):
    """Weights for `_reach`: an amount, and below it a 1 that counts the key."""
    return tl.where(chosen, amounts.to(tl.int64) * COUNTS + 1, 0)


@triton.jit
def _reach(keys, weights, total, limit, low, high, COUNTS: tl.constexpr):
    """The highest key such that the keys from it up weigh more than `limit`.

    `low` and `high` are the lowest and highest key with a weight, `total` the sum of the weights.
    Where even that is not more than `limit`, the lowest.
    """
    upper = high + 1
    from_low = tl.where(total // COUNTS > limit, total % COUNTS, 0)
    from_upper = from_low * 0
    while from_low - from_upper > 1:
        middle = low + (upper - low) // 2
        above = tl.sum(tl.where(keys >= middle, weights, 0))
        enough = above // COUNTS > limit
        from_low = tl.where(enough, above % COUNTS, from_low)
        from_upper = tl.where(enough, from_upper, above % COUNTS)
        low = tl.where(enough, middle, low)
        upper = tl.where(enough, upper, middle)
    return tl.min(tl.where((keys >= low) & (weights != 0), keys, high))


@triton.jit
def _highest(keys, chosen, k, COUNTS: tl.constexpr):
    """The lowest and highest of the `k` highest keys among the chosen."""
    weights = _weigh(chosen, chosen, COUNTS)
    high = tl.max(tl.where(chosen, keys, -(1 << 62)))
    low = tl.min(tl.where(chosen, keys, high))
    return _reach(keys, weights, tl.sum(weights), k - 1, low, high, COUNTS), high


@triton.jit
def _draw_filtered(scores, keys, ids, k, p, chance, COUNTS: tl.constexpr):
    """The key of the code in whose share of the filtered mass the chance falls."""
    possible = scores > float("-inf")
    low, high = _highest(keys, possible, k, COUNTS)
    hottest = tl.max(scores)
    # Masses are integers, so that their sums do not depend on an order: 1028 of them, each up to
    # 2⁴⁰, and 12 bits for counting fill 63 bits.
    masses = tl.where(scores == hottest, 1.0, tl.exp(scores - hottest)) * (1 << 40)
    weights = _weigh(masses, possible & (keys >= low), COUNTS)
    total = tl.sum(weights)
    limit = (p.to(tl.float64) * (total // COUNTS).to(tl.float64)).to(tl.int64)
    low = _reach(keys, weights, total, limit, low, high, COUNTS)
    total = tl.sum(tl.where(keys >= low, weights, 0))
    limit = (chance.to(tl.float64) * (total // COUNTS).to(tl.float64)).to(tl.int64)
    return _reach(keys, weights, total, limit, low, high, COUNTS)


@triton.jit
def _chance(seed, step, channel, channels):
    """`random.uniform` of one draw."""
    counter = (step * channels + channel).to(tl.uint32)
    zero = counter ^ counter
    word, _, _, _ = tl.philox(seed, counter, zero, zero, zero)
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2⁻²³


@triton.jit(do_not_specialize=["width"])
def _draw_kernel(
    logits,
    cfg_scale,
    temperature,
    top_p,
    top_k,
    seed,
    step,
    codes,
    width,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    EOS: tl.constexpr,
    JUNE: tl.constexpr,
    EOS_FACTOR: tl.constexpr,
    COLDEST: tl.constexpr,
    NO_CODE: tl.constexpr,
):
    COUNTS: tl.constexpr = 2 * BLOCK  # what a count stays below
    NOTHING: tl.constexpr = float("-inf")
    slot, channel = tl.program_id(0), tl.program_id(1)
    ids = tl.arange(0, BLOCK)
    real = ids < SIZE
    source = logits + (slot * CHANNELS + channel) * SIZE + ids
    blind = tl.load(source, mask=real, other=0.0).to(tl.float32)
    seeing = tl.load(source + width * CHANNELS * SIZE, mask=real, other=0.0).to(tl.float32)
    guided = seeing + tl.load(cfg_scale + slot) * (seeing - blind)
    k = tl.load(top_k + slot)
    allowed = ids < EOS + (channel == 0).to(tl.int32)  # only the first channel may end
    ending = (ids == EOS) & (channel == 0)
    if JUNE:
        preferred = _keys_of(guided, ids, BLOCK)
        least, _ = _highest(preferred, real, k, COUNTS)
        best_valid = tl.max(tl.where(allowed, preferred, -(1 << 62)))
        kept = allowed & ((preferred >= least) | (preferred == best_valid))
        scores = tl.where(kept, seeing, NOTHING)
    else:
        scores = tl.where(allowed, guided, NOTHING)
        scores = tl.where(ending, scores * EOS_FACTOR, scores)
    best = _id_of(tl.max(_keys_of(scores, ids, BLOCK)), BLOCK)
    if best == EOS:
        if JUNE:  # the end is certain
            scores = tl.where(ending, scores, NOTHING)
    else:
        scores = tl.where(ending, NOTHING, scores)
    heat = tl.load(temperature + slot)
    scores = tl.div_rn(scores, tl.full([BLOCK], 0.0, tl.float32) + tl.maximum(heat, COLDEST))
    keys = _keys_of(scores, ids, BLOCK)
    chance = _chance(tl.load(seed + slot), tl.load(step + slot), channel, CHANNELS)
    drawn = _draw_filtered(scores, keys, ids, k, tl.load(top_p + slot), chance, COUNTS)
    code = tl.where(heat == 0.0, best, _id_of(drawn, BLOCK))
    # Where no score is a number, nothing was chosen, and the code is as good as any.
    code = tl.where(code < SIZE, code, 0)
    broken = tl.max(((guided != guided) & real).to(tl.int32))
    tl.store(codes + slot * CHANNELS + channel, tl.where(broken != 0, NO_CODE, code))

"""Products of a few rows with a weight matrix, in Triton, where that is faster than cuBLAS.

A decode step multiplies twice as many rows as there are slots with each of the model's weights. Up
to 16 rows, which tensor cores take at once, the time is that of reading the weights. A program
takes a few outputs and streams their weights through the whole inner dimension, with as many loads
under way as its shared memory holds; nothing is split that would have to be added up again, so a
result does not depend on an order. 2048 outputs, 16 a program, keep 128 multiprocessors busy.

Which tiling is fast on a device, and whether cuBLAS is faster, nobody knows before it was timed:
`timed_linear` does that once, at start, for each shape of weight and number of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from subprocess import SubprocessError

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from worker.dia.config import DiaConfig

logger = logging.getLogger(__name__)

Linear = Callable[[Tensor, Tensor], Tensor]

MOST_ROWS = 16
_WORTH_IT = 0.97  # of cuBLAS's time; less than that is noise
_ROUNDING = 2e-2  # of the largest result
_CALLS = 24  # in the graph that is timed
_BEYOND_CACHE = 2**28  # bytes of weights that one timing walks through: more than any L2 holds


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs of a program, inner numbers of a load, loads under way."""

    outputs: int
    inner: int
    stages: int


TILINGS = (Tiling(16, 256, 5), Tiling(32, 128, 5), Tiling(64, 128, 4))


class ChosenLinear:
    """`F.linear`, or what was found faster for a shape of weight and a number of rows.

    Args:
        tilings: by outputs and inputs of the weight, and rows, what is faster than `F.linear`.
    """

    def __init__(self, tilings: Mapping[tuple[tuple[int, ...], int], Tiling]) -> None:
        self.tilings = dict(tilings)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """`F.linear`: [M, K] and [out, K] → [M, out]."""
        tiling = self.tilings.get((weight.shape, bucket(x.shape[0])))
        return F.linear(x, weight) if tiling is None else stream_linear(x, weight, tiling)


def bucket(rows: int) -> int:
    """The number of rows that was timed for so many: the next power of 2."""
    return 1 << (rows - 1).bit_length()


def timed_linear(
    shapes: Iterable[tuple[int, int]], rows: Iterable[int], dtype: torch.dtype, device: torch.device
) -> ChosenLinear:
    """Times every tiling against `F.linear`, once; what it returns does not change.

    Args:
        shapes: outputs and inputs of the weights.
        rows: numbers of rows, powers of 2.
        dtype: of rows and weights; nothing is timed for float32.
        device: the GPU.
    """
    tilings: dict[tuple[tuple[int, ...], int], Tiling] = {}
    numbers = _BEYOND_CACHE // dtype.itemsize
    if dtype.itemsize != 2:
        return ChosenLinear(tilings)
    pool = torch.empty(numbers, dtype=dtype, device=device).normal_()
    for outputs, inner in sorted(set(shapes)):
        weights = pool[: numbers // (outputs * inner) * outputs * inner].view(-1, outputs, inner)
        for count in rows:
            fastest = _fastest(weights, torch.randn(count, inner, device=device).to(dtype))
            if fastest is not None:
                tilings[(outputs, inner), count] = fastest
    logger.info("kernels: %d of the matrix products are faster than torch's", len(tilings))
    return ChosenLinear(tilings)


def decoder_shapes(config: DiaConfig) -> set[tuple[int, int]]:
    """Outputs and inputs of the weights that a decode step multiplies with."""
    decoder = config.decoder
    hidden, size = decoder.hidden, decoder.head_dim
    queries, cross = decoder.query_heads * size, decoder.cross_heads * decoder.cross_head_dim
    return {
        (queries + 2 * decoder.kv_heads * size, hidden),
        (hidden, queries),
        (cross, hidden),
        (hidden, cross),
        (2 * decoder.intermediate, hidden),
        (hidden, decoder.intermediate),
        (decoder.channels * decoder.vocabulary, hidden),
    }


def _fastest(weights: Tensor, x: Tensor) -> Tiling | None:
    """The tiling that beats `F.linear` and gives the same, if one does."""
    expected = F.linear(x, weights[0]).float()
    best, limit = None, _WORTH_IT * _seconds(F.linear, x, weights)
    for tiling in TILINGS:
        linear = partial(stream_linear, tiling=tiling)
        try:
            off = (linear(x, weights[0]).float() - expected).abs().max() / expected.abs().max()
            seconds = _seconds(linear, x, weights)
        except (TritonError, RuntimeError, OSError, SubprocessError) as error:
            logger.warning("kernels: %s is left out: %s", tiling, error)
            continue
        if off < _ROUNDING and seconds < limit:
            best, limit = tiling, seconds
    return best


def _seconds(linear: Linear, x: Tensor, weights: Tensor) -> float:
    """Of one product in a captured graph that takes another weight each time."""
    linear(x, weights[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(_CALLS):
            linear(x, weights[call % len(weights)])
    graph.replay()
    return median(_replay(graph) for _ in range(5)) / _CALLS


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


def stream_linear(x: Tensor, weight: Tensor, tiling: Tiling) -> Tensor:
    """`F.linear` of at most 16 rows of two-byte numbers.

    Args:
        x: [M, K].
        weight: [out, K].
        tiling: one of `TILINGS`.

    Returns:
        [M, out], added up in float32.
    """
    (rows, inner), outputs = x.shape, weight.shape[0]
    assert rows <= MOST_ROWS and x.is_contiguous() and weight.is_contiguous()
    out = x.new_empty(rows, outputs)
    _linear_kernel[(triton.cdiv(outputs, tiling.outputs),)](
        x,
        weight,
        out,
        rows,
        outputs,
        inner,
        MOST_ROWS,
        tiling.outputs,
        tiling.inner,
        num_warps=4,
        num_stages=tiling.stages,
    )
    return out


@triton.jit(do_not_specialize=["rows", "outputs"])
def _linear_kernel(
    x,
    weight,
    out,
    rows,
    outputs,
    inner,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
):
    columns = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    members, steps = tl.arange(0, ROWS), tl.arange(0, INNER)
    real, given = (columns < outputs)[:, None], (members < rows)[None, :]
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for at in range(0, inner, INNER):
        lived = at + steps < inner
        # The weights pass once and are of no use again; the rows are what the caches are for.
        weights = tl.load(
            weight + columns[:, None] * inner + (at + steps)[None, :],
            mask=real & lived[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        numbers = tl.load(
            x + members[None, :] * inner + (at + steps)[:, None],
            mask=given & lived[:, None],
            other=0.0,
        )
        sums = tl.dot(weights, numbers, sums)
    target = out + members[None, :] * outputs + columns[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=real & given)

"""How long each operation of a decode step takes on this GPU, plain and fused.

    python -m bench.kernels --widths 1 8 32 --context 1024

Takes the shapes of full-size Dia, with all slots at the end of the context. Each operation is
captured 24 times in a CUDA graph, on keys, values and weights that take turns, so that they come
from memory and not from its cache; a figure is the median of five replays. `GB_per_s` counts what
an operation has to read of caches and weights. Prints a table, and as its last line the same as
JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.published import DIA
from bench.table import finish, show, significant
from worker.dia.config import DiaConfig, Generation
from worker.engine.kernels.ops import ROWS, Ops, Reach
from worker.engine.kernels.plain import plain_ops
from worker.engine.kernels.select import select_ops
from worker.engine.sampling import SamplingBatch

GPU = torch.device("cuda")
CALLS, REPLAYS = 24, 5  # of an operation in a graph, and of the graph
BEYOND_CACHE = 2**28  # bytes that take turns
TEXT = 256  # bytes of each slot's text

Call = Callable[[Ops, int], object]  # of an operation, the n-th time


def microseconds(call: Callable[[int], object]) -> float:
    """Of one call, in a graph of many."""
    call(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for n in range(CALLS):
            call(n)
    graph.replay()
    return median(_replay(graph) for _ in range(REPLAYS)) / CALLS


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


class Step:
    """What the operations of one decode step work on."""

    def __init__(self, config: DiaConfig, dtype: torch.dtype, width: int, context: int) -> None:
        self._config, self._dtype = config, dtype
        self._width, self._context = width, context
        positions = torch.full((width,), context - 1, device=GPU)
        self._reach = Reach(positions, torch.full_like(positions, TEXT), context, TEXT)

    def calls(self) -> dict[str, tuple[Call, int]]:
        """By what is shown for it: an operation, and the bytes that it reads of large things."""
        hidden, rows = self._config.decoder.hidden, ROWS * self._width
        x, update = self._random(rows, hidden), self._random(rows, hidden)
        weight = self._random(hidden)
        gate_up = self._random(rows, 2 * self._config.decoder.intermediate)
        return {
            "norm": (lambda ops, n: ops.norm(x, weight, 1e-5), 0),
            "add_norm": (lambda ops, n: ops.add_norm(x, update, None, weight, 1e-5), 0),
            "swiglu": (lambda ops, n: ops.swiglu(gate_up), 0),
            "draw": (self._draw(), 0),
            **self._attention(),
            **self._linears(),
        }

    def _attention(self) -> dict[str, tuple[Call, int]]:
        decoder, width = self._config.decoder, self._width
        heads, kv_heads, size = decoder.query_heads, decoder.kv_heads, decoder.head_dim
        k, v = self._turns((width, ROWS, kv_heads, self._context, size))
        text_k, text_v = self._turns((width, decoder.cross_heads, TEXT, decoder.cross_head_dim))
        qkv = self._random(ROWS * width, (heads + 2 * kv_heads) * size)
        q = self._random(ROWS * width, heads * size) / size
        rotary = torch.ones(width, 2, size // 2, device=GPU)
        reach = self._reach
        return {
            "rotate_store": (
                lambda ops, n: ops.rotate_store(qkv, rotary, reach, k[n % len(k)], v[n % len(v)]),
                0,
            ),
            "attend": (
                lambda ops, n: ops.attend(q, k[n % len(k)], v[n % len(v)], reach),
                2 * k[0].nbytes,
            ),
            "attend_text": (
                lambda ops, n: ops.attend_text(
                    q[:width], None, text_k[n % len(text_k)], text_v[n % len(text_v)], reach
                ),
                2 * text_k[0].nbytes,
            ),
        }

    def _linears(self) -> dict[str, tuple[Call, int]]:
        from worker.engine.kernels.fused_linear import decoder_shapes

        calls: dict[str, tuple[Call, int]] = {}
        for outputs, inner in sorted(decoder_shapes(self._config)):
            weights, _ = self._turns((outputs, inner))
            x = self._random(ROWS * self._width, inner)

            def call(ops: Ops, n: int, x: Tensor = x, weights: Tensor = weights) -> Tensor:
                return ops.linear(x, weights[n % len(weights)])

            calls[f"linear {inner}→{outputs}"] = call, weights[0].nbytes
        return calls

    def _draw(self) -> Call:
        decoder, width = self._config.decoder, self._width
        logits = self._random(ROWS, width, decoder.channels, decoder.vocabulary) * 3
        ones, counts = torch.ones(width, device=GPU), torch.arange(width, device=GPU)
        batch = SamplingBatch(
            cfg_scale=ones * 3,
            temperature=ones * 1.8,
            top_p=ones * 0.9,
            top_k=counts * 0 + 50,
            seed=counts,
            step=counts,
            widest=50,
        )
        return lambda ops, n: ops.draw(logits, batch)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=GPU).to(self._dtype)

    def _turns(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Two tensors of so many things that the cache does not hold them."""
        size = torch.Size(shape).numel() * self._dtype.itemsize
        turns = max(2, -(-BEYOND_CACHE // size))
        first = torch.empty(turns, *shape, device=GPU, dtype=self._dtype).normal_()
        return first, torch.empty_like(first).normal_()


def measure(step: Step, width: int, plain: Ops, fused: Ops) -> list[dict[str, Any]]:
    """Rows of the table: every operation at one width."""
    rows = []
    for name, (call, size) in step.calls().items():
        plain_us = microseconds(lambda n, call=call: call(plain, n))
        fused_us = microseconds(lambda n, call=call: call(fused, n))
        rows.append(
            {
                "operation": name,
                "slots": width,
                "plain_us": significant(plain_us),
                "fused_us": significant(fused_us),
                "times_faster": significant(plain_us / fused_us, 3),
                "GB_per_s": significant(size / fused_us / 1e3) if size else None,
            }
        )
    return rows


@torch.inference_mode()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--generation", type=Generation, default=Generation.JUNE)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.kernels times kernels on a GPU, and this machine has none", file=sys.stderr)
        sys.exit(2)
    config = replace(DIA, generation=arguments.generation)
    dtype = getattr(torch, arguments.dtype)
    plain, fused = plain_ops(config, GPU), select_ops(config, GPU, dtype)
    rows = []
    for width in arguments.widths:
        rows += measure(Step(config, dtype, width, arguments.context), width, plain, fused)
    show(f"Operations of a decode step, context {arguments.context}, text {TEXT}", rows)
    finish("kernels", GPU, dtype, context=arguments.context, text=TEXT, rows=rows)


if __name__ == "__main__":
    main()

"""Compiles the kernels of full-size Dia ahead of time, without a GPU.

    python -m tests.engine.kernels.ahead --capabilities 80 90 --dtypes bfloat16

Calls every operation on the CPU with full-size tensors, notes what each would launch instead of
launching it, and compiles that as a launch would, for the GPUs named. Prints one JSON object: for
each kernel its shared memory and its registers' spills in bytes, and the widths of its loads.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from bench.published import DIA
from worker.dia.config import DiaConfig, Generation
from worker.engine.kernels.fused import fused_ops
from worker.engine.kernels.fused_linear import TILINGS, decoder_shapes, stream_linear
from worker.engine.kernels.ops import Ops, Reach
from worker.engine.sampling import SamplingBatch

CPU = torch.device("cpu")
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """What distinguishes one compilation from another."""

    function: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]  # arguments that 16 divides
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    def compile(self, capability: int) -> Any:
        """For the GPUs of a capability, 90 for 9.0."""
        source = ASTSource(
            self.function,
            dict(self.signature),
            constexprs=dict(self.constants),
            attrs={(index,): [["tt.divisibility", 16]] for index in self.aligned},
        )
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options=dict(self.options))


def describe(function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """Types, constants and alignments, as Triton finds them at a launch."""
    signature, constants, aligned = {}, {}, []
    for index, (parameter, value) in enumerate(zip(function.params, args, strict=True)):
        kind = "constexpr"
        if parameter.is_constexpr:
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            kind = POINTERS[value.dtype]
            aligned += [index] if value.data_ptr() % 16 == 0 else []
        elif isinstance(value, float):
            kind = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            constants[parameter.name] = value
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned.append(index)
        signature[parameter.name] = kind
    return Launch(
        function,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(aligned),
        tuple(options.items()),
    )


@contextmanager
def noted() -> Iterator[list[Launch]]:
    """Notes launches instead of launching."""
    launches: list[Launch] = []
    run = JITFunction.run

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert all(0 < count < 65_536 for count in grid[1:])
        launches.append(describe(self, args, options))

    JITFunction.run = note
    try:
        yield launches
    finally:
        JITFunction.run = run


def call_all(ops: Ops, config: DiaConfig, dtype: torch.dtype, width: int, context: int) -> None:
    """Calls each operation as a decode step of full-size Dia does."""
    decoder = config.decoder
    hidden, size, heads = decoder.hidden, decoder.head_dim, decoder.query_heads
    places = torch.zeros(width, dtype=torch.long)
    reach = Reach(places, places, context, min(context, 1024))

    def rows(count: int, columns: int) -> Tensor:
        return torch.empty(count, columns, dtype=dtype)

    x, weight, constant = rows(2 * width, hidden), rows(1, hidden)[0], rows(1, hidden)[0]
    rotary = torch.empty(width, 2, size // 2)
    # Nobody touches these pages, so that they take no memory.
    cache = torch.empty(width, 2, decoder.kv_heads, decoder.max_positions, size, dtype=dtype)
    text = torch.empty(width, heads, 1024, size, dtype=dtype)
    ops.norm(x, weight, 1e-5)
    ops.norm(x[width:], weight, 1e-5)
    ops.add_norm(x, rows(2 * width, hidden), None, weight, 1e-5)
    ops.add_norm(x, rows(width, hidden), constant, weight, 1e-5)
    ops.swiglu(rows(2 * width, 2 * decoder.intermediate))
    qkv = rows(2 * width, (heads + 2 * decoder.kv_heads) * size)
    q = ops.rotate_store(qkv, rotary, reach, cache, cache)
    ops.attend(q, cache, cache, reach)
    rotates = config.generation is Generation.APRIL
    ops.attend_text(q[:width], rotary if rotates else None, text, text, reach)
    column = torch.empty(width)
    counts = SamplingBatch(column, column, column, places, places, places, 1024)
    logits = torch.empty(2, width, decoder.channels, decoder.vocabulary, dtype=dtype)
    ops.draw(logits, counts)


def linears(dtype: torch.dtype) -> None:
    """Calls the streaming product in every tiling."""
    for tiling in TILINGS:
        for rows in (2, 16):
            for outputs, inner in decoder_shapes(DIA):
                x, weight = (torch.empty(count, inner, dtype=dtype) for count in (rows, outputs))
                stream_linear(x, weight, tiling)


def tool(name: str) -> str:
    """A program that Triton brings along."""
    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


def measures(compiled: Any) -> dict[str, Any]:
    """What a compiled kernel takes, read from its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool("cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK):(\d+)", usage)}
    ptx = compiled.asm["ptx"]
    loads = re.findall(r"(?:ld\.global\S*?|cp\.async\.c[ga]\.shared\.global)(?:\.v\d)?\S* .*", ptx)
    return {
        "shared": compiled.metadata.shared,
        "registers": used["REG"],
        "stack": used["STACK"],
        "loads": sorted({width_of(load) for load in loads}),
    }


def width_of(load: str) -> int:
    """Bytes that one thread loads with an instruction."""
    if load.startswith("cp.async"):
        return int(re.findall(r", 0x([0-9a-f]+)", load)[0], 16)
    vector = re.search(r"\.v(\d)\.", load)
    element = re.search(r"\.[bfsu](\d+)\b", load)
    assert element
    return int(vector[1] if vector else 1) * int(element[1]) // 8


def launches_of(config: DiaConfig, dtype: torch.dtype, full: bool) -> list[Launch]:
    """The distinct launches of a start, for several widths and contexts or one of each."""
    ops = fused_ops(config, CPU)
    with noted() as launches:
        for width in (1, 2, 3, 8, 16, 32) if full else (8,):
            for context in (128, 256, 768, 1024, 3072) if full else (1024,):
                call_all(ops, config, dtype, width, context)
    return list(dict.fromkeys(launches))


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capabilities", type=int, nargs="*", default=[80, 89, 90, 120])
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    parser.add_argument("--generations", nargs="*", default=["0626"])
    parser.add_argument("--linear", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())
    report: dict[str, Any] = {"count": {}, "kernels": []}
    for generation in arguments.generations:
        config = replace(DIA, generation=Generation(generation))
        for name in arguments.dtypes:
            dtype = getattr(torch, name)
            launches = launches_of(config, dtype, full=True)
            report["count"][f"{generation} {name}"] = len(launches)
            if arguments.linear:
                with noted() as more:
                    linears(dtype)
                launches += list(dict.fromkeys(more))
            for launch in launches:
                for capability in arguments.capabilities:
                    found = measures(launch.compile(capability))
                    found.update(kernel=launch.name, capability=capability, dtype=name)
                    report["kernels"].append(found)
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()

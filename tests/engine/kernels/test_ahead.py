"""The kernels of full-size Dia compile for the GPUs that RunPod lends, and fit into them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

SHARED = {80: 163, 89: 99, 90: 227, 120: 99}  # KB that a program may have
LARGE = {"_norm_kernel", "_add_norm_kernel", "_swiglu_kernel", "_attend_kernel", "_linear_kernel"}


def compiled(*arguments: object) -> dict[str, Any]:
    """In a process of its own: kernels that are interpreted cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.ahead", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report: dict[str, Any] = json.loads(run.stdout)
    return report


def test_every_kernel_compiles_and_fits_every_gpu() -> None:
    """Registers and shared memory suffice, and large things are loaded 16 bytes a thread."""
    report = compiled("--linear", "--capabilities", *SHARED)
    assert {kernel["capability"] for kernel in report["kernels"]} == set(SHARED)
    for kernel in report["kernels"]:
        assert kernel["stack"] <= 8, kernel  # bytes: two registers, put by before a loop
        assert kernel["shared"] <= SHARED[kernel["capability"]] * 1024, kernel
        assert kernel["kernel"] not in LARGE or max(kernel["loads"]) == 16, kernel


def test_a_start_compiles_eight_kernels_for_all_widths_and_contexts() -> None:
    report = compiled("--capabilities", "--generations", "0626", "april")
    assert report["count"] == {"0626 bfloat16": 8, "april bfloat16": 8}

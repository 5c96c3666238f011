"""Triton's interpreter, which runs kernels without a GPU: imports Triton so that it interprets.

Whether a kernel is interpreted is settled when it is defined, and Triton defines some of its own.
Another test's libraries may have imported Triton before, for compiling; here it is imported anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
    if not name.startswith("triton._C"):  # the compiler itself can be loaded once
        del sys.modules[name]

from triton.runtime import interpreter  # noqa: E402 - after what has to be set for it


def let_scalars_count() -> None:
    """Lets a loop run to a bound that was loaded, which NumPy 2.4 forbids the interpreter.

    It keeps scalars as arrays of one number, and these are no longer converted by `int`.
    """
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: type, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch


def swap_once_a_launch() -> None:
    """Swaps Triton's functions once a launch, not at every call of each: three times faster."""
    swap, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    swapped: set[Callable[..., Any]] = set()

    def swap_once(function: Callable[..., Any]) -> Any:
        if function in swapped:
            return None
        swapped.add(function)
        return swap(function)

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> None:
        swapped.clear()
        launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = swap_once, launch_afresh


let_scalars_count()
swap_once_a_launch()

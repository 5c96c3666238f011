"""How every benchmark reports: a table for people, and as the last line one JSON object.

Both are made of the same rows, so whatever the table shows is in the JSON under the same name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Row = Mapping[str, Any]  # figure by name; the name ends in the figure's unit where it has one


def show(title: str, rows: Sequence[Row]) -> None:
    """Prints rows under the names of their fields; whatever is no number or text is left out."""
    shown = [{name: _cell(value) for name, value in row.items() if _fits(value)} for row in rows]
    names = list(dict.fromkeys(name for row in shown for name in row))
    print(f"\n{title}")
    widths = {
        name: max(len(name), *(len(row.get(name, "")) for row in shown)) + 2 for name in names
    }
    print("".join(name.replace("_", " ").rjust(widths[name]) for name in names))
    for row in shown:
        print("".join(row.get(name, "").rjust(widths[name]) for name in names), flush=True)


def finish(bench: str, device: torch.device, dtype: torch.dtype, **figures: Any) -> None:
    """Prints the last line: where it was measured, and all figures."""
    print(json.dumps({"bench": bench, **place(device, dtype), **figures}))


def place(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Where figures come from; without it they mean nothing."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
    }


def significant(value: float, digits: int = 4) -> float:
    """A figure without the digits that only pretend."""
    return float(f"{value:.{digits}g}")


def _fits(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

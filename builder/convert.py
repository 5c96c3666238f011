"""Published weights as an image holds them: half as large, and not pickled.

One tensor is in memory at a time, so a build needs no more of it for the largest model.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from worker.codec.checkpoint import load_codec, save_codec
from worker.errors import InvalidCheckpoint
from worker.tensors import Checkpoint, open_checkpoint

CPU = torch.device("cpu")
_ALIGNMENT = 8  # of the tensors in a safetensors file


def write_bfloat16(source: Path, target: Path) -> None:
    """Writes a checkpoint's tensors, rounded to bfloat16, under their names into safetensors.

    On a GPU the worker would round them the same way when it loads them.

    Raises:
        InvalidCheckpoint: if the source cannot be read, or holds what is no number.
    """
    checkpoint = open_checkpoint(source)
    names = sorted(checkpoint)
    header = _header(checkpoint, names, source)
    with target.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            half = checkpoint.load(name).to(torch.bfloat16).flatten()
            file.write(half.view(torch.uint8).numpy().data)


def write_codec(source: Path, folder: Path) -> None:
    """Writes Descript's weights as the folder that `find_codec` looks for.

    Weight norm is undone on the way, which a cold start then need not do.
    """
    save_codec(load_codec(source, CPU), folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes files that only their owner may read


def _header(checkpoint: Checkpoint, names: list[str], source: Path) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = checkpoint.load(name)
        if not tensor.is_floating_point():
            raise InvalidCheckpoint(f"{source}: {name} holds {tensor.dtype}, not numbers to round")
        start, end = end, end + math.prod(tensor.shape) * torch.bfloat16.itemsize
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return encoded + b" " * (-len(encoded) % _ALIGNMENT)

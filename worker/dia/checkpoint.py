"""Reads and writes Dia's weights, strictly, in both published layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.dia.layouts import Layout, Piece, pieces_of
from worker.dia.model import DiaModel
from worker.errors import InvalidCheckpoint
from worker.tensors import Checkpoint, open_checkpoint, uninitialised

NAMED_AT_MOST = 6  # tensors listed in an error message, of each kind of fault


def load_dia(
    weights: Path, config: DiaConfig, device: torch.device, dtype: torch.dtype
) -> tuple[DiaModel, str]:
    """Loads a checkpoint straight into parameters on the device.

    One tensor of the file is in memory at a time, beside the model itself.

    Returns:
        The prepared model, and the checkpoint's fingerprint.

    Raises:
        InvalidCheckpoint: naming the tensors that are missing, unexpected or mis-shaped.
    """
    checkpoint = open_checkpoint(weights)
    pieces = list(pieces_of(config, detect_layout(checkpoint, weights)))
    _require_exactly(pieces, checkpoint, weights)
    model = empty_dia(config, device, dtype)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for piece in pieces:
            rows = parameters[piece.parameter][piece.first_row : piece.first_row + piece.rows]
            rows.copy_(piece.from_file(checkpoint.load(piece.name).to(device)))
    model.prepare()
    return model, checkpoint.fingerprint()


def empty_dia(config: DiaConfig, device: torch.device, dtype: torch.dtype) -> DiaModel:
    """A model on the device whose weights are not set yet."""
    with uninitialised(device, dtype):
        model = DiaModel(config)
    return model.requires_grad_(False).eval()


def export_dia(model: DiaModel, layout: Layout) -> dict[str, Tensor]:
    """The weights under a file's names and shapes; the inverse of loading."""
    parameters = dict(model.named_parameters())
    return {
        piece.name: piece.to_file(parameters[piece.parameter].detach()).cpu().clone()
        for piece in pieces_of(model.config, layout)
    }


def detect_layout(checkpoint: Checkpoint, source: Path) -> Layout:
    """Tells the layout by the name of the text embedding."""
    if "model.encoder.embedding.weight" in checkpoint:
        return Layout.TRANSFORMERS
    if "encoder.embedding.weight" in checkpoint:
        return Layout.NATIVE
    raise InvalidCheckpoint(
        f"{source}: not a Dia checkpoint: holds neither `encoder.embedding.weight` (native "
        "layout) nor `model.encoder.embedding.weight` (transformers layout)"
    )


def _require_exactly(pieces: list[Piece], checkpoint: Checkpoint, source: Path) -> None:
    wanted = {piece.name: piece.shape for piece in pieces}
    found = {name: tuple(checkpoint.load(name).shape) for name in checkpoint}
    misshaped = [
        f"{name} (is {list(found[name])}, must be {list(shape)})"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "of the wrong shape": misshaped,
    }
    told = [f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names]
    if told:
        raise InvalidCheckpoint(f"{source}: tensors {'; '.join(told)}")


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")

"""Writes a model and its codec as the folder that the worker loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from worker.codec.checkpoint import save_codec
from worker.codec.codec import Codec
from worker.codec.network import CodecNetwork
from worker.dia.checkpoint import export_dia
from worker.dia.config import to_transformers
from worker.dia.layouts import Layout
from worker.dia.model import DiaModel

WEIGHTS, CONFIG, CODEC_FOLDER = "model.safetensors", "config.json", "codec"


def write_model_folder(
    folder: Path, model: DiaModel, codec: Codec | CodecNetwork, *, trained: bool
) -> None:
    """Writes `model.safetensors` (bfloat16, transformers layout), `codec/` and `config.json`.

    Args:
        folder: made if need be.
        model: whatever its precision.
        codec: written in its own precision.
        trained: whether what it speaks is speech; the worker tells its users where it is not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = export_dia(model, Layout.TRANSFORMERS)
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(halved, folder / WEIGHTS, metadata={"format": "pt"})
    save_codec(codec, folder / CODEC_FOLDER)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner may read
    # The configuration comes last: a folder that has one is whole.
    config = {**to_transformers(model.config), "trained": trained}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

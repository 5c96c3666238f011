"""Models as they are published, and small: what the hub has, with pins for it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builder.download import Patience
from builder.fetch_weights import main
from builder.pins import CODECS, DIA, Pin, Published
from tests.builder.serving import Hub
from worker.codec.checkpoint import descript_name, load_codec
from worker.codec.config import CodecConfig
from worker.dia.checkpoint import export_dia, load_dia
from worker.dia.config import DiaConfig
from worker.dia.layouts import Layout

CPU = torch.device("cpu")
JUNE, APRIL = "nari-labs/Dia-1.6B-0626", "ttj/dia-1.6b-safetensors"
QUICK = Patience(attempts=2, silence_s=0.5, pause_s=0.01)
DESCRIPT, ON_THE_HUB = "descriptinc/descript-audio-codec", "descript/dac_44khz"


@dataclass(frozen=True)
class Small:
    """Files of small models, by their names, in the layouts in which the real ones come."""

    june: dict[str, bytes]
    april: dict[str, bytes]
    descript: dict[str, bytes]
    codec: dict[str, bytes]


def small_models(tiny_model: Path, folder: Path) -> Small:
    """Publishes dia-tiny and its codec in the layouts of the real ones."""
    config = DiaConfig.read(tiny_model / "config.json")
    model, _ = load_dia(tiny_model / "model.safetensors", config, CPU, torch.float32)
    june = saved(export_dia(model, Layout.NATIVE), folder / "pytorch_model.bin")
    codec = load_codec(tiny_model / "codec", CPU)
    sides = {
        "encoder": len(codec.config.encoder_strides),
        "decoder": len(codec.config.decoder_strides),
    }
    state = {
        descript_name(name, sides.get(name.partition(".")[0], 0)): tensor.clone()
        for name, tensor in codec.network.state_dict().items()
    }
    content = {"state_dict": state, "metadata": {"kwargs": descript_kwargs(codec.config)}}
    codec_files = {file.name: file.read_bytes() for file in (tiny_model / "codec").iterdir()}
    return Small(
        june={
            "config.json": (tiny_model / "config.json").read_bytes(),
            "pytorch_model.bin": june,
        },
        april={"config.json": b"{}", "dia-v0_1_bf16.safetensors": b"weights"},
        descript={"weights.pth": saved(content, folder / "weights.pth")},
        codec=codec_files,
    )


def saved(content: dict[str, Any], file: Path) -> bytes:
    torch.save(content, file)
    return file.read_bytes()


def descript_kwargs(config: CodecConfig) -> dict[str, Any]:
    return {
        "encoder_dim": config.encoder_channels,
        "encoder_rates": list(config.encoder_strides),
        "decoder_dim": config.decoder_channels,
        "decoder_rates": list(config.decoder_strides),
        "latent_dim": config.latent_dim,
        "n_codebooks": config.codebooks,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "sample_rate": config.sample_rate,
    }


def pin_of(pin: Pin, files: dict[str, bytes]) -> Pin:
    """The same pin, for other files."""
    published = tuple(
        Published(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )
    return replace(pin, files=published)


def publish(hub: Hub, small: Small) -> dict[str, Pin]:
    """Puts everything where the real ones lie; returns pins by repository."""
    pins = {
        JUNE: pin_of(DIA[JUNE], small.june),
        APRIL: DIA[APRIL],
        DESCRIPT: pin_of(CODECS[DESCRIPT], small.descript),
        ON_THE_HUB: pin_of(CODECS[ON_THE_HUB], small.codec),
    }
    commits = {repository: pin.revision or "a" * 40 for repository, pin in pins.items()}
    for repository, files in (
        (JUNE, small.june),
        (APRIL, small.april),
        (ON_THE_HUB, small.codec),
    ):
        for name, content in files.items():
            hub.files[f"/{repository}/resolve/{commits[repository]}/{name}"] = content
    weights = small.descript["weights.pth"]
    hub.files[f"/{DESCRIPT}/releases/download/0.0.1/weights.pth"] = weights
    return pins


def source_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "SOURCE.json").read_text())
    return content


def run(hub: Hub, models: Path, *arguments: str, **environ: str) -> int:
    """`builder.fetch_weights`, with a hub that is ours."""
    return main(
        [*arguments, "--into", str(models), "--github", hub.url],
        {"HF_ENDPOINT": hub.url, **environ},
        QUICK,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def the_error(caplog: pytest.LogCaptureFixture) -> str:
    """The one line that was said."""
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "\n" not in errors[0]
    return errors[0]

"""Cold start: from settings to a service that can take jobs.

Everything that can be wrong with a worker shows here, before the first job: a worker that cannot
load never starts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.delivery import Delivery, InlineDelivery, KeepingDelivery
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig, Generation
from worker.dia.model import DiaModel
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.errors import InvalidCheckpoint, InvalidConfig
from worker.schema import ModelInfo
from worker.service import Service
from worker.settings import Settings
from worker.voices.library import VoiceLibrary
from worker.weights import ModelFiles, find_codec, find_dia

logger = logging.getLogger(__name__)

SLOTS = {"cpu": 4, "cuda": 8}  # chunks decoded side by side where the settings do not say


def start(settings: Settings) -> Service:
    """Loads weights, codec and voices, and starts the engine.

    Raises:
        SetupError: in one line, what is wrong and what would be right.
        JobError: where a voice to be preloaded is unknown or cannot serve.
    """
    started = time.monotonic()
    device = resolve_device(settings.model.device)
    dtype = resolve_dtype(settings.model.dtype, device)
    if device.type == "cuda":
        _prepare_cuda(device, settings.performance.cuda_memory_fraction)
    files = find_dia(settings, torch.cuda.is_available())
    with _stage(f"{files.name} ({files.origin})"):
        model, info = _load_model(files, settings, device, dtype)
    with _stage("codec"):
        codec = load_codec(find_codec(settings, files), device)
    _check_pair(model, codec)
    delivery = _delivery(settings)
    library = settings.voice_library
    voices = VoiceLibrary(library.path, codec, library.max_cache_size)
    with _stage(f"{len(library.preload_voices)} preloaded voices"):
        voices.preload(library.preload_voices)
    slots = settings.performance.slots or SLOTS[device.type]
    with _stage(f"engine of {slots} slots"):
        engine = EngineLoop(Engine(model, slots, settings.performance.memory_optimization))
    logger.info("ready on %s in %.1f s", device, time.monotonic() - started)
    return Service(engine, codec, voices, delivery, info, is_trained(files.config))


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU.

    Raises:
        InvalidConfig: if it is a device that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(f"cuda:{index}" for index in range(count))]
    # Always with its index: torch's memory functions refuse a bare "cuda".
    wanted = {"auto": "cuda:0" if count else "cpu", "cuda": "cuda:0"}.get(name, name)
    if wanted not in there:
        raise InvalidConfig(
            f"model.device is {name!r}, and this machine has {count} CUDA devices; valid are "
            f"auto, {', '.join(there)}"
        )
    return torch.device(wanted)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on the CPU, where bfloat16 is slow."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_trained(config: Path) -> bool:
    """Whether a model's `config.json` does not say `"trained": false`."""
    return bool(json.loads(config.read_text()).get("trained", True))


def _load_model(
    files: ModelFiles, settings: Settings, device: torch.device, dtype: torch.dtype
) -> tuple[DiaModel, ModelInfo]:
    override = settings.model.generation
    config = DiaConfig.read(files.config, Generation(override) if override else None)
    model, fingerprint = load_dia(files.weights, config, device, dtype)
    info = ModelInfo(
        name=files.name,
        generation=config.generation.value,
        dtype=str(dtype).removeprefix("torch."),
        fingerprint=fingerprint,
    )
    return model, info


def _check_pair(model: DiaModel, codec: Codec) -> None:
    channels = model.config.decoder.channels
    if codec.codebooks != channels:
        raise InvalidCheckpoint(
            f"the model speaks {channels} channels and the codec has {codec.codebooks} "
            "codebooks; they must be as many"
        )


def _prepare_cuda(device: torch.device, memory_fraction: float) -> None:
    torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
    # Ten bits of mantissa would flip codes that are nearly tied when a voice is encoded.
    torch.backends.cudnn.allow_tf32 = False


def _delivery(settings: Settings) -> Delivery:
    folder = settings.delivery.keep_in
    if folder is None:
        return InlineDelivery()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(
            f"KEEP_RESULTS_IN (delivery.keep_in): {str(folder)!r} cannot be made: "
            f"{error.strerror}; it must be a folder that may be written"
        ) from error
    return KeepingDelivery(InlineDelivery(), folder)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    logger.info("loaded %s in %.2f s", name, time.monotonic() - started)

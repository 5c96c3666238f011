"""Cold start: from settings to a service that can take jobs.

Everything that can be wrong with a worker shows here, before the first job: a worker that cannot
load never starts.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.codec.precision import with_fast_decode
from worker.delivery import Delivery, FittingDelivery, KeepingDelivery, bucket_of_settings
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig, Generation
from worker.dia.layers import store_by_columns
from worker.dia.model import DiaModel
from worker.engine.engine import Engine
from worker.engine.footprint import PROMPT_FRAMES, codec_frames_at_once, is_small
from worker.engine.kernels.select import select_ops
from worker.engine.loop import EngineLoop
from worker.engine.memory import Budget, CodecSize, MemoryPlan, plan_memory
from worker.engine.options import EngineOptions
from worker.errors import InvalidCheckpoint, InvalidConfig
from worker.fitness import check_device, try_out
from worker.remote import RemoteReferences
from worker.schema import MAX_REFERENCE_BYTES, ModelInfo
from worker.service import Service
from worker.settings import DeliverySettings, GenerationLimits, PerformanceSettings, Settings
from worker.voices.library import VoiceLibrary
from worker.weights import ModelFiles, find_codec, find_dia

logger = logging.getLogger(__name__)

STEPS_BETWEEN_LOOKS = 4  # on a GPU: some 5 ms
# Chunks decoded side by side on a CPU where the settings do not say; a GPU has what fits.
SLOTS_OF_A_SMALL_MODEL, SLOTS_OF_A_LARGE_MODEL = 8, 2


def start(settings: Settings) -> Service:
    """Loads weights, codec and voices, and starts the engine.

    Raises:
        SetupError: in one line, what is wrong and what would be right.
        JobError: where a voice to be preloaded is unknown or cannot serve.
    """
    started = time.monotonic()
    delivery = _delivery(settings.delivery)  # first: half a bucket is known before anything loads
    device = resolve_device(settings.model.device)
    dtype = resolve_dtype(settings.model.dtype, device)
    check_device(device, dtype)
    if device.type == "cuda":
        _prepare_cuda(device, settings.performance.cuda_memory_fraction)
    else:
        _prepare_cpu()
    files = find_dia(settings, torch.cuda.is_available())
    override = settings.model.generation
    config = DiaConfig.read(files.config, Generation(override) if override else None)
    with _stage("codec"):
        codec = load_codec(find_codec(settings, files), device)
        if device.type == "cuda":
            codec = with_fast_decode(codec)
    _check_pair(config, codec)
    # Before the model is loaded: where it cannot fit, that is known at once.
    plan = plan_for(config, codec, settings, device, dtype)
    if device.type == "cuda":
        bound_codec(codec, plan)
    with _stage(f"{files.name} ({files.origin})"):
        model, info = _load_model(files, config, device, dtype)
    library = settings.voice_library
    voices = VoiceLibrary(library.path, codec, library.max_cache_size)
    with _stage(f"{len(library.preload_voices)} preloaded voices"):
        voices.preload(library.preload_voices)
    with _stage(f"engine of {plan.slots} slots"):
        engine = EngineLoop(_engine(model, plan, settings.performance, dtype))
    with _stage("trial generation"):
        try_out(engine, codec)
    logger.info("ready on %s in %.1f s", device, time.monotonic() - started)
    trained, remote = is_trained(files.config), _remote(settings.generation.limits)
    return Service(engine, codec, voices, delivery, info, trained, remote)


def log_imports() -> None:
    """Logs how long the process has been running: until now it has only imported."""
    try:
        # Fields 3 and on come after the program's name, which ends with the last bracket.
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return  # no Linux
    logger.info("imported everything in %.2f s", uptime - began / os.sysconf("SC_CLK_TCK"))


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


def plan_for(
    config: DiaConfig, codec: Codec, settings: Settings, device: torch.device, dtype: torch.dtype
) -> MemoryPlan:
    """Shares out the device's memory and logs the shares; a CPU's memory has no limit.

    Raises:
        InvalidConfig: if the device is too small for what the settings ask for.
    """
    performance, on_cpu = settings.performance, device.type == "cpu"
    weights = sum(each.nbytes for each in codec.network.parameters())
    budget = None
    if not on_cpu:
        total, held = device_memory(device)
        budget = Budget(total, held, performance.cuda_memory_fraction)
    plan = plan_memory(
        config,
        dtype.itemsize,
        CodecSize(codec.config, weights, codec.decode_dtype.itemsize),
        performance.slots or (cpu_slots(config) if on_cpu else None),
        budget,
    )
    logger.info("memory: %s%s", plan, f"; {budget}" if budget else "")
    logger.info("memory: %s", plan.details)
    return plan


def cpu_slots(config: DiaConfig) -> int:
    """How many slots a CPU gets: a large model keeps it busy with few."""
    return SLOTS_OF_A_SMALL_MODEL if is_small(config) else SLOTS_OF_A_LARGE_MODEL


def bound_codec(codec: Codec, plan: MemoryPlan) -> None:
    """Keeps what the codec decodes at once within its share."""
    frames = codec_frames_at_once(codec.config, codec.decode_dtype.itemsize, plan.codec_piece)
    frames = max(frames, 4 * codec.context_frames)  # the least that it takes
    codec.frames_at_once = min(frames, codec.frames_at_once or frames)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a CUDA device, and how many of them others than this process's tensors hold."""
    free, total = torch.cuda.mem_get_info(device)
    held = total - free - torch.cuda.memory_reserved(device)
    return torch.cuda.get_device_properties(device).total_memory, max(0, held)


def is_trained(config: Path) -> bool:
    """Whether a model's `config.json` does not say `"trained": false`."""
    return bool(json.loads(config.read_text()).get("trained", True))


def _load_model(
    files: ModelFiles, config: DiaConfig, device: torch.device, dtype: torch.dtype
) -> tuple[DiaModel, ModelInfo]:
    model, fingerprint = load_dia(files.weights, config, device, dtype)
    if device.type == "cpu" and is_small(config):
        store_by_columns(model)
    info = ModelInfo(
        name=files.name,
        generation=config.generation.value,
        dtype=str(dtype).removeprefix("torch."),
        fingerprint=fingerprint,
    )
    return model, info


def _engine(
    model: DiaModel, plan: MemoryPlan, performance: PerformanceSettings, dtype: torch.dtype
) -> Engine:
    """An engine with what the device can do, its common steps recorded."""
    device = model.decoder.logits.weight.device
    on_gpu = device.type == "cuda"
    options = EngineOptions(
        graphs=on_gpu and performance.cuda_graphs,
        steps_between_looks=STEPS_BETWEEN_LOOKS if on_gpu else 1,
        release_when_idle=on_gpu and performance.memory_optimization,
        same_shapes=performance.reproducible,
        prompts=plan.places,
        prompt_frames=PROMPT_FRAMES,
    )
    with _stage("kernels"):
        fused, timed = performance.fused_kernels, not performance.reproducible
        ops = select_ops(model.config, device, dtype, fused, timed)
    engine = Engine(model, plan.slots, options, ops)
    with _stage("recorded steps"):
        engine.runner.warm()
    return engine


def _check_pair(config: DiaConfig, codec: Codec) -> None:
    channels = config.decoder.channels
    if codec.codebooks != channels:
        raise InvalidCheckpoint(
            f"the model speaks {channels} channels and the codec has {codec.codebooks} "
            "codebooks; they must be as many"
        )


def _prepare_cpu() -> None:
    # oneDNN keeps compiled code for each length that the codec has ever decoded, 1024 at most:
    # dia-tiny's grew the process by 185 MB over 41 lengths. A few lengths' worth is as fast.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def _prepare_cuda(device: torch.device, memory_fraction: float) -> None:
    torch.cuda.set_device(device)
    torch.cuda.set_per_process_memory_fraction(memory_fraction, device)
    # Ten bits of mantissa would flip codes that are nearly tied when a voice is encoded.
    torch.backends.cudnn.allow_tf32 = False


def _remote(limits: GenerationLimits) -> RemoteReferences | None:
    if not limits.remote_references:
        return None
    return RemoteReferences(limits.remote_timeout_s, MAX_REFERENCE_BYTES)


def _delivery(settings: DeliverySettings) -> Delivery:
    delivery = FittingDelivery(
        bucket_of_settings(settings.bucket), settings.bucket, settings.allow_private_endpoints
    )
    folder = settings.keep_in
    if folder is None:
        return delivery
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig(
            f"KEEP_RESULTS_IN (delivery.keep_in): {str(folder)!r} cannot be made: "
            f"{error.strerror}; it must be a folder that may be written"
        ) from error
    return KeepingDelivery(delivery, folder)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    logger.info("loaded %s in %.2f s", name, time.monotonic() - started)

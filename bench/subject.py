"""What a benchmark measures: the configured model, or one of random weights; on which device.

Also the two ways to measure time, and the engine as the worker builds it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.weights import KEPT_IN, SIZES, random_model
from worker.config import load_settings
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig, Generation
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.kernels.select import select_ops
from worker.engine.options import EngineOptions
from worker.settings import Settings
from worker.startup import STEPS_BETWEEN_LOOKS, resolve_device, resolve_dtype
from worker.text.duration import FRAMES_PER_SECOND
from worker.weights import find_dia

SENTENCE = "[S1] The harbor is quiet tonight, and the boats wait for the wind. [S2] Let them wait. "


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--random-weights", action="store_true", help="instead of the configured model"
    )
    group.add_argument("--size", choices=SIZES, default="full", help="of the random weights")
    group.add_argument("--keep", type=Path, default=KEPT_IN, help="where random weights are kept")
    group.add_argument("--device", help="instead of the configured one")
    group.add_argument("--dtype", help="instead of the configured one")
    return parser


def environment_for(options: argparse.Namespace) -> dict[str, str]:
    """The environment in which the worker loads what the options ask for."""
    environment = dict(os.environ)
    if options.random_weights:
        # Whatever else names weights would be mixed in.
        for name in ("DIA_MODEL_WEIGHTS_FILENAME", "DIA_MODEL_REVISION", "DAC_MODEL"):
            environment.pop(name, None)
        environment["DIA_MODEL"] = str(random_model(options.keep, options.size).resolve())
    chosen = {"MODEL_DEVICE": options.device, "MODEL_DTYPE": options.dtype}
    return environment | {name: value for name, value in chosen.items() if value}


def settings_for(options: argparse.Namespace, slots: int | None = None) -> Settings:
    """The settings that the options ask for, with that many slots where they are given."""
    settings = load_settings(environment_for(options))
    if slots is None:
        return settings
    performance = settings.performance.model_copy(update={"slots": slots})
    return settings.model_copy(update={"performance": performance})


@dataclass(frozen=True)
class Subject:
    """A model on its device, without a service around it."""

    name: str
    folder: Path
    model: DiaModel
    device: torch.device
    dtype: torch.dtype

    @property
    def config(self) -> DiaConfig:
        """The model's dimensions."""
        return self.model.config


def load_subject(options: argparse.Namespace) -> Subject:
    """Loads the model that the options ask for, and keeps it from ending what it speaks."""
    settings = settings_for(options)
    device = resolve_device(settings.model.device)
    dtype = resolve_dtype(settings.model.dtype, device)
    files = find_dia(settings, torch.cuda.is_available())
    override = settings.model.generation
    config = DiaConfig.read(files.config, Generation(override) if override else None)
    model, _ = load_dia(files.weights, config, device, dtype)
    with torch.no_grad():
        # An end is drawn only where it is the likeliest, and of equals the lower id goes first.
        logits = model.decoder.logits.weight
        logits[config.eos_id] = logits[0]
    return Subject(files.name, files.config.parent, model, device, dtype)


def build_engine(
    model: DiaModel,
    slots: int,
    graphs: bool = True,
    fused: bool = True,
    same_shapes: bool = False,
) -> Engine:
    """An engine as the worker builds it; graphs and fused kernels are for a GPU alone."""
    weight = model.decoder.logits.weight
    looks = STEPS_BETWEEN_LOOKS if weight.is_cuda else 1
    options = EngineOptions(
        graphs=graphs and weight.is_cuda, steps_between_looks=looks, same_shapes=same_shapes
    )
    ops = select_ops(model.config, weight.device, weight.dtype, fused, timed=not same_shapes)
    return Engine(model, slots, options, ops)


def times_realtime(step_ms: float) -> float:
    """Seconds of audio that one stream gets in a second: a step decodes one frame of each."""
    return 1e3 / step_ms / FRAMES_PER_SECOND


def text_of(length: int) -> list[int]:
    """Ids of a text of so many bytes."""
    ids = encode_text(SENTENCE)
    return (ids * (length // len(ids) + 1))[:length]


def random_prompt(frames: int, channels: int, seed: int = 0) -> Tensor:
    """[P, C] codes that stand for a voice."""
    return torch.randint(1024, (frames, channels), generator=torch.Generator().manual_seed(seed))


def elapsed_ms(device: torch.device, work: Callable[[], object]) -> float:
    """Milliseconds that the device takes for the work; its events are exact, a host's clock not."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - began)
    events: Any = torch.cuda  # whose annotations are incomplete
    begin, end = (events.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def copy_bandwidth(device: torch.device, repeats: int = 9) -> float:
    """Bytes a second that a copy reads and writes: as fast as memory can be read at all."""
    size = (1 << 30) if device.type == "cuda" else (1 << 27)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [elapsed_ms(device, lambda: target.copy_(source)) for _ in range(repeats + 1)]
    return 2e3 * size / statistics.median(times[1:])

"""Dia models small enough to run hundreds of times, and the folders of reference vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from worker.dia.checkpoint import empty_dia, load_dia
from worker.dia.config import DecoderConfig, DiaConfig, EncoderConfig, Generation
from worker.dia.model import DiaModel
from worker.engine.prefill import PromptPass
from worker.engine.runner import Runner
from worker.engine.sequence import Sequence
from worker.engine.step import StepShape

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden"

# Every count differs from its neighbours, so that a swapped dimension is an error.
NINE_CHANNELS = DiaConfig(
    generation=Generation.JUNE,
    encoder=EncoderConfig(
        layers=2,
        hidden=24,
        intermediate=40,
        heads=3,
        head_dim=8,
        vocabulary=256,
        max_positions=64,
    ),
    decoder=DecoderConfig(
        layers=3,
        hidden=32,
        intermediate=56,
        query_heads=6,
        kv_heads=2,
        head_dim=8,
        cross_heads=5,
        cross_head_dim=4,
        channels=9,
        vocabulary=1028,
        max_positions=160,
    ),
    delays=(0, 8, 9, 10, 11, 12, 13, 14, 15),
)
THREE_CHANNELS = replace(
    NINE_CHANNELS,
    decoder=replace(NINE_CHANNELS.decoder, layers=2, channels=3),
    delays=(0, 2, 3),
)


def random_model(config: DiaConfig, seed: int = 0) -> DiaModel:
    """A model whose activations keep their size, with norms that are not all one."""
    model = empty_dia(config, CPU, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                spread = 1.0 if "embedding" in name else 1 / math.sqrt(parameter.shape[1])
                parameter.normal_(std=spread, generator=generator)
    model.prepare()
    return model


@cache
def small_model(generation: Generation, channels: int = 3) -> DiaModel:
    """Shared: do not change its weights."""
    config = THREE_CHANNELS if channels == 3 else NINE_CHANNELS
    return random_model(replace(config, generation=generation))


def random_codes(frames: int, channels: int, seed: int = 0) -> Tensor:
    """[T, C] codec frames."""
    return torch.randint(1024, (frames, channels), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Golden:
    """A folder of reference vectors, loaded."""

    folder: Path
    model: DiaModel
    native: dict[str, Tensor]  # the checkpoint's tensors, float32
    expected: dict[str, Tensor]

    @property
    def config(self) -> DiaConfig:
        return self.model.config

    def codes(self, case: str, row: int = 0) -> Tensor:
        """[T, C] codes of a greedy generation."""
        return self.expected[f"{case}.codes.{row}"].long()

    def prompt(self, name: str) -> Tensor:
        """[P, C] codes of a voice."""
        return self.expected[name].long()


@cache
def golden(generation: Generation) -> Golden:
    """Shared: do not change its weights."""
    folder = GOLDEN / generation.value
    config = DiaConfig.read(folder / "config.json")
    weights = folder / "native.safetensors"
    model, _ = load_dia(weights, config, CPU, torch.float32)
    native = {name: tensor.float() for name, tensor in load_file(weights).items()}
    return Golden(folder, model, native, load_file(folder / "expected.safetensors"))


@torch.inference_mode()
def prompt_logits(runner: Runner, slot: int, sequence: Sequence, tokens: Tensor) -> Tensor:
    """[2, T, C, V] logits of one pass over tokens [T, C] with the text of a slot."""
    length = tokens.shape[0]
    attend = PromptPass(
        runner.cache,
        without=[runner.cache.new_prompt(length)],
        slots=[slot],
        frames=[length],
        text_lengths=[len(sequence.text_ids)],
    )
    both, positions = tokens.expand(2, -1, -1), torch.arange(length)
    return runner.model.logits(runner.model.decode(both, positions, attend, unconditional_rows=1))


def shape_for(runner: Runner, *sequences: Sequence) -> StepShape:
    """A step's shape for sequences in the first slots that have taken the same steps."""
    state = runner.state.position[: len(sequences)]
    return StepShape(
        width=len(sequences),
        context=int(state.max()) + 1,
        text=max(len(sequence.text_ids) for sequence in sequences),
        widest=max(sequence.params.top_k for sequence in sequences),
    )


def relative_error(have: Tensor, want: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((have - want).abs().max() / want.abs().max())


def parameters_of(model: DiaModel) -> dict[str, Any]:
    """Copies of a model's parameters by name."""
    return {name: parameter.clone() for name, parameter in model.named_parameters()}

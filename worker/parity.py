"""Runs folders of reference vectors and says whether this machine computes the same.

A folder holds `config.json`, `native.safetensors`, `cases.json` and `expected.safetensors`, made
with the reference implementation: for each case the text encoder's output, the logits of the
first decode steps, and the codes of a greedy generation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.kernels.ops import Ops
from worker.engine.kernels.select import select_ops
from worker.engine.options import DEFAULTS, EngineOptions
from worker.engine.prefill import PromptPass
from worker.engine.sequence import SamplingParams, Sequence
from worker.errors import InvalidInput
from worker.tensors import open_checkpoint

LOGIT_TOLERANCE = 1e-4  # of the largest logit, in float32


@dataclass(frozen=True)
class CaseResult:
    """What one case gave."""

    folder: str
    case: str
    mode: Mode
    frames: int
    codes_equal: bool
    encoder_error: float  # relative to the largest value expected
    logit_error: float

    @property
    def passed(self) -> bool:
        """Equal codes, and encoder and logits within the tolerance."""
        return self.codes_equal and max(self.encoder_error, self.logit_error) <= LOGIT_TOLERANCE


class Mode(str, Enum):
    """How the engine runs the cases."""

    PLAIN = "plain"  # each step as it is written, in torch's own operations
    SERVED = "served"  # as a GPU serves: fused kernels, recorded steps, late looks


def modes_of(device: torch.device) -> list[Mode]:
    """Every mode that a device has."""
    return list(Mode) if device.type == "cuda" else [Mode.PLAIN]


def check_folder(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    mode: Mode = Mode.PLAIN,
) -> Iterator[CaseResult]:
    """Runs every case of a folder.

    Raises:
        InvalidInput: if the folder lacks a file.
    """
    for name in ("config.json", "native.safetensors", "cases.json", "expected.safetensors"):
        if not (folder / name).is_file():
            raise InvalidInput(f"{folder} is no folder of reference vectors: {name} is missing")
    config = DiaConfig.read(folder / "config.json")
    model, _ = load_dia(folder / "native.safetensors", config, device, dtype)
    vectors = open_checkpoint(folder / "expected.safetensors")
    expected = {name: vectors.load(name) for name in vectors}
    try:
        cases = json.loads((folder / "cases.json").read_text())
        ops = select_ops(config, device, dtype, fused=mode is Mode.SERVED)
        for case in cases["cases"]:
            yield _check_case(folder, model, case, cases, expected, mode, ops)
    except (ValueError, KeyError) as error:
        raise InvalidInput(f"{folder} is no folder of reference vectors: {error!r}") from error


def case_sequences(
    case: dict[str, Any], settings: dict[str, Any], expected: dict[str, Tensor], config: DiaConfig
) -> list[Sequence]:
    """The sequences of a case; a batch has several."""
    texts, prompts = _listed(case["text"]), _listed(case["prompt"])
    params = SamplingParams(
        cfg_scale=settings["cfg_scale"],
        top_k=settings["cfg_filter_top_k"],
        temperature=settings["temperature"],
    )
    silence = torch.zeros(0, config.decoder.channels, dtype=torch.long)
    sequences = []
    for text, name in zip(texts, prompts, strict=True):
        prompt = expected[name].long() if name else silence
        room = case["max_tokens"] - config.max_delay - 1 - prompt.shape[0]
        ids = encode_text(text, config.encoder.max_positions)
        sequences.append(Sequence(ids, prompt, room, params))
    return sequences


def _check_case(
    folder: Path,
    model: DiaModel,
    case: dict[str, Any],
    settings: dict[str, Any],
    expected: dict[str, Tensor],
    mode: Mode,
    ops: Ops,
) -> CaseResult:
    name, config = case["name"], model.config
    weight = model.decoder.logits.weight
    eos_row = weight[config.eos_id].clone()
    if case["eos_ended"] is not None:  # this case was made with a column of its own
        weight[config.eos_id] = expected["eos_column"].to(weight)
    sequences = case_sequences(case, settings, expected, config)
    options = EngineOptions(graphs=True, steps_between_looks=4) if mode is Mode.SERVED else DEFAULTS
    engine = Engine(model, len(sequences), options, ops)
    logit_error = _logit_error(engine, sequences, expected[f"{name}.step_logits"])
    while engine.scheduler:
        engine.step()
    weight[config.eos_id] = eos_row
    codes = [sequence.codes for sequence in sequences]
    wanted = [expected[f"{name}.codes.{row}"].long() for row in range(len(sequences))]
    return CaseResult(
        folder=folder.name,
        case=name,
        mode=mode,
        frames=sum(rows.shape[0] for rows in wanted),
        codes_equal=all(
            have is not None and torch.equal(have, want)
            for have, want in zip(codes, wanted, strict=True)
        ),
        encoder_error=_encoder_error(model, sequences, expected[f"{name}.encoder"]),
        logit_error=logit_error,
    )


def _logit_error(engine: Engine, sequences: list[Sequence], expected: Tensor) -> float:
    """Takes the first steps; `expected` is [steps, rows · 2, C, V], counted for all rows from
    where the shortest prompt ends: for a longer prompt these positions lie inside it."""
    for sequence in sequences:
        engine.add(sequence)
    steps = expected.shape[0]
    taken = []
    for _ in range(steps):
        engine.step()
        assert engine.runner.logits is not None
        taken.append(engine.runner.logits.transpose(0, 1).cpu())  # [N, 2, C, V]
    first = min(sequence.prompt_frames for sequence in sequences)
    worst = 0.0
    for row, sequence in enumerate(sequences):
        if sequence.prompt_frames == first:
            logits = torch.stack([step[row] for step in taken])
        else:
            logits = _prompt_logits(engine, row, sequence)[first : first + steps]
        worst = max(worst, _relative(logits, expected[:, 2 * row : 2 * row + 2]))
    return worst


@torch.inference_mode()
def _prompt_logits(engine: Engine, slot: int, sequence: Sequence) -> Tensor:
    """[P, 2, C, V] logits at the positions of a prompt."""
    runner, frames = engine.runner, sequence.prompt_frames
    tokens = runner.state.history[slot, :frames].expand(2, -1, -1)
    positions = torch.arange(frames, device=runner.device)
    without = [runner.cache.new_prompt(frames)]
    attend = PromptPass(runner.cache, without, [slot], [frames], [len(sequence.text_ids)])
    hidden = runner.model.decode(tokens, positions, attend, unconditional_rows=1)
    return runner.model.logits(hidden).transpose(0, 1).cpu()


@torch.inference_mode()
def _encoder_error(model: DiaModel, sequences: list[Sequence], expected: Tensor) -> float:
    device = model.decoder.logits.weight.device
    worst = 0.0
    for row, sequence in enumerate(sequences):
        encoded = model.encode(torch.tensor(sequence.text_ids, device=device)).float().cpu()
        worst = max(worst, _relative(encoded, expected[2 * row + 1, : encoded.shape[0]]))
    return worst


def _relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).abs().max() / want.abs().max())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

"""Dia as `transformers` has it, against ours: files in both directions, logits and codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DiaConfig as TheirConfig
from transformers import DiaForConditionalGeneration

from tests.models import (
    CPU,
    NINE_CHANNELS,
    parameters_of,
    prompt_logits,
    random_codes,
    random_model,
    relative_error,
)
from worker.dia.checkpoint import export_dia, load_dia
from worker.dia.config import DiaConfig, to_transformers
from worker.dia.delay import UNKNOWN, delay_prompt, undelay
from worker.dia.layouts import Layout, pieces_of
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.runner import Runner
from worker.engine.sequence import SamplingParams, Sequence

TEXT = encode_text("[S1] Hello there. [S2] Oh, hi!")
TOLERANCE = 1e-5  # of the largest value, float32
GREEDY = SamplingParams(cfg_scale=3.0, temperature=0.0, top_k=45)
FORCED = 16  # frames that their forced ending takes away, the EOS frame and the longest delay


@pytest.fixture(scope="module")
def theirs() -> DiaForConditionalGeneration:
    """Their network with weights large enough that codes vary."""
    ours = to_transformers(NINE_CHANNELS)
    model = DiaForConditionalGeneration(
        TheirConfig(
            encoder_config=ours["encoder_config"],
            decoder_config=ours["decoder_config"],
            delay_pattern=ours["delay_pattern"],
        )
    ).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                spread = 1.0 if "embed" in name else 1 / math.sqrt(parameter.shape[1])
                parameter.normal_(std=spread, generator=generator)
    return model


@pytest.fixture(scope="module")
def saved(theirs: DiaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("transformers")
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved: Path) -> DiaModel:
    """Ours, from what they saved."""
    config = DiaConfig.read(saved / "config.json")
    return load_dia(saved / "model.safetensors", config, CPU, torch.float32)[0]


def their_codes(
    model: DiaForConditionalGeneration, prompt: Tensor, new_positions: int
) -> tuple[Tensor, int]:
    """Greedy delayed codes by position, and the position where channel 0 ends."""
    config = model.config.decoder_config
    delayed = delay_prompt(prompt, model.config.delay_pattern, config.bos_token_id)
    given = delayed.masked_fill(delayed == UNKNOWN, config.pad_token_id).unsqueeze(0)
    ids = torch.tensor([TEXT])
    codes: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        decoder_input_ids=given,
        decoder_attention_mask=torch.ones(given.shape[:2], dtype=torch.long),
        max_new_tokens=new_positions,
        do_sample=False,
        guidance_scale=3.0,
        top_k=45,
        temperature=1.0,
    )[0]
    return codes, int((codes[:, 0] == config.eos_token_id).nonzero()[0])


def test_the_configuration_that_they_save_is_read(saved: Path) -> None:
    assert DiaConfig.read(saved / "config.json") == NINE_CHANNELS


def test_the_configuration_that_we_write_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_transformers(NINE_CHANNELS)))
    config = TheirConfig.from_pretrained(tmp_path)
    assert config.encoder_config.hidden_size == NINE_CHANNELS.encoder.hidden
    assert config.decoder_config.cross_head_dim == NINE_CHANNELS.decoder.cross_head_dim
    assert config.decoder_config.num_channels == 9
    assert tuple(config.delay_pattern) == NINE_CHANNELS.delays
    config.save_pretrained(tmp_path / "again")
    assert DiaConfig.read(tmp_path / "again" / "config.json") == NINE_CHANNELS


def test_the_weights_that_we_export_are_taken_strictly_and_mean_the_same(
    theirs: DiaForConditionalGeneration, loaded: DiaModel
) -> None:
    ours = random_model(NINE_CHANNELS, seed=21)
    receiver = DiaForConditionalGeneration(theirs.config).eval()
    receiver.load_state_dict(export_dia(ours, Layout.TRANSFORMERS), strict=True)
    assert forward_error(ours, receiver) < TOLERANCE
    assert forward_error(loaded, receiver) > 0.1  # so the weights matter


def test_weights_survive_the_way_there_and_back(
    theirs: DiaForConditionalGeneration, tmp_path: Path
) -> None:
    ours = random_model(NINE_CHANNELS, seed=22)
    receiver = DiaForConditionalGeneration(theirs.config)
    receiver.load_state_dict(export_dia(ours, Layout.TRANSFORMERS), strict=True)
    receiver.save_pretrained(tmp_path)
    back, _ = load_dia(tmp_path / "model.safetensors", NINE_CHANNELS, CPU, torch.float32)
    before, after = parameters_of(ours), parameters_of(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def forward_error(ours: DiaModel, theirs: DiaForConditionalGeneration) -> float:
    """Both guidance rows at every position of a prompt."""
    tokens = delay_prompt(random_codes(30, 9, seed=4), NINE_CHANNELS.delays, 1026)[:31]
    runner = Runner(ours, slots=1)
    sequence = Sequence(TEXT, random_codes(30, 9, seed=4), 1)
    runner.start([(0, sequence)])
    with torch.inference_mode():
        ids = torch.tensor([[0] * len(TEXT), TEXT])
        wanted = theirs(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=tokens.expand(2, -1, -1),
        ).logits
    have = prompt_logits(runner, 0, sequence, tokens)
    return relative_error(have, wanted.view(2, 9, 31, -1).transpose(1, 2))


def test_both_guidance_rows_have_their_logits_at_every_position(
    theirs: DiaForConditionalGeneration, loaded: DiaModel
) -> None:
    assert forward_error(loaded, theirs) < TOLERANCE


def test_the_first_step_has_their_logits(
    theirs: DiaForConditionalGeneration, loaded: DiaModel
) -> None:
    engine = Engine(loaded, slots=1)
    engine.add(Sequence(TEXT, random_codes(0, 9), 5, GREEDY))
    engine.step()
    ids = torch.tensor([[0] * len(TEXT), TEXT])
    with torch.inference_mode():
        bos = torch.full((2, 1, 9), 1026)
        wanted = theirs(input_ids=ids, decoder_input_ids=bos).logits
    assert engine.runner.logits is not None
    assert relative_error(engine.runner.logits[:, 0], wanted.view(2, 9, -1)) < TOLERANCE


@pytest.mark.parametrize("prompt_frames", [0, 13])
def test_greedy_codes_are_theirs_up_to_the_forced_ending(
    theirs: DiaForConditionalGeneration, loaded: DiaModel, prompt_frames: int
) -> None:
    prompt = random_codes(prompt_frames, 9, seed=6)
    delayed, end = their_codes(theirs, prompt, new_positions=60)
    frames = end - prompt_frames - 1
    assert frames == 60 - FORCED
    (sequence,) = Engine(loaded, slots=1).generate([Sequence(TEXT, prompt, frames, GREEDY)])
    untouched = frames - NINE_CHANNELS.max_delay  # frames whose channels all came before the end
    wanted = undelay(delayed, NINE_CHANNELS.delays, prompt_frames + 1, end - 15)
    assert sequence.codes is not None
    assert torch.equal(sequence.codes[:untouched], wanted)
    assert len(wanted.unique()) > 50


def test_a_full_checkpoint_has_the_names_and_shapes_of_theirs() -> None:
    with torch.device("meta"):
        full = DiaForConditionalGeneration(TheirConfig())
    wanted = {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()}
    config = DiaConfig.parse(full.config.to_dict())
    pieces = {piece.name: piece.shape for piece in pieces_of(config, Layout.TRANSFORMERS)}
    assert pieces == wanted
    assert len(wanted) == 335
    assert sum(parameter.numel() for parameter in full.parameters()) == 1_611_160_576

"""Draws in Triton against the sampler's: the same codes, but where a chance lies on a boundary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.engine.kernels.cases import random
from tests.models import CPU, THREE_CHANNELS
from worker.dia.config import DiaConfig, Generation
from worker.engine import sampling
from worker.engine.kernels.fused_draw import FusedDraw, _chance
from worker.engine.random import uniform
from worker.engine.sampling import NO_CODE, Sampler, SamplingBatch

EOS, FEW, CHANNELS = 16, 20, 3  # as in Dia: after EOS there are three more ids
BOUNDARY = 1e-5
both_generations = pytest.mark.parametrize("generation", list(Generation))

# cfg_scale, temperature, top_p, top_k: usual ones, and each at its ends
SETTINGS = [
    (3.0, 1.8, 0.9, 50),
    (3.0, 0.0, 0.95, 45),
    (0.0, 1.3, 0.95, 7),
    (5.5, 0.7, 0.0, 1024),
    (1.0, 2.5, 1.0, 1),
    (3.0, 1e-5, 1.0, 1024),
    (2.0, 3.0, 0.01, 4),
    (3.0, 1.0, 1.0, 1028),
]


def config_of(generation: Generation, few: bool = True) -> DiaConfig:
    config = replace(THREE_CHANNELS, generation=generation)
    if not few:
        return config
    decoder = replace(config.decoder, vocabulary=FEW)
    return replace(config, decoder=decoder, eos_id=EOS, pad_id=EOS + 1, bos_id=EOS + 2)


def batch_of(vocabulary: int, seed: int = 0) -> SamplingBatch:
    """One slot for each of the settings."""
    cfg_scale, temperature, top_p, top_k = torch.tensor(SETTINGS).unbind(1)
    slots = torch.arange(len(SETTINGS))
    return SamplingBatch(
        cfg_scale=cfg_scale.contiguous(),
        temperature=temperature.contiguous(),
        top_p=top_p.contiguous(),
        top_k=top_k.long().clamp(max=vocabulary),
        seed=(slots << 33) + seed,
        step=slots * 7 + seed,
        widest=vocabulary,
    )


def assert_drawn_alike(
    config: DiaConfig, logits: Tensor, batch: SamplingBatch, patch: pytest.MonkeyPatch
) -> Tensor:
    """Where the draws differ, the sampler draws that code, too, with a chance next to its own."""
    sampler = Sampler(config, CPU)
    drawn, expected = FusedDraw(config)(logits, batch), sampler.draw(logits, batch)
    alike = drawn == expected
    if not alike.all():
        for off in (-BOUNDARY, BOUNDARY):
            for nucleus in (-BOUNDARY, 0.0, BOUNDARY):
                patch.setattr(sampling, "uniform", lambda *args, off=off: uniform(*args) + off)
                near = replace(batch, top_p=batch.top_p + nucleus)
                alike |= drawn == sampler.draw(logits, near)
        patch.undo()
    assert alike.all(), (drawn, expected)
    return drawn


def few_logits(kind: str, seed: int) -> Tensor:
    logits = random(2, len(SETTINGS), CHANNELS, FEW, seed=seed) * 3
    if kind == "tied":
        return logits.round() / 2 * torch.tensor([1.0, -0.0])[torch.arange(FEW) % 2]
    if kind == "ending":
        logits[:, ::2, 0, EOS] += 5
        logits[:, 1::2, 0, EOS] += 2
    if kind == "special":
        logits[1, ..., EOS + 1 :] += 50
        logits[1, :, 1:, EOS] += 50
    return logits


@both_generations
@pytest.mark.parametrize("kind", ["tied", "ending", "special"])
def test_codes_are_drawn_as_the_sampler_draws_them(
    generation: Generation, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(generation)
    drawn = assert_drawn_alike(config, few_logits(kind, 1), batch_of(FEW, 1), monkeypatch)
    assert drawn.min() >= 0
    assert drawn[:, 0].max() <= EOS
    assert drawn[:, 1:].max() < EOS


@both_generations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_they_are_at_full_size(
    generation: Generation, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 many of 1028 logits are equal."""
    config = config_of(generation, few=False)
    logits = (random(2, len(SETTINGS), CHANNELS, 1028) * 3).to(dtype)
    assert_drawn_alike(config, logits, batch_of(1028), monkeypatch)


@both_generations
def test_logits_that_are_no_numbers_give_no_code_in_their_channel_alone(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = few_logits("ending", 5)
    logits[1, 0, 1, 3] = logits[0, 1, 0, FEW - 1] = torch.nan
    logits[1, 2, 2] = torch.nan
    drawn = assert_drawn_alike(config_of(generation), logits, batch_of(FEW), monkeypatch)
    broken = torch.zeros_like(drawn, dtype=torch.bool)
    broken[0, 1] = broken[1, 0] = broken[2, 2] = True
    assert torch.equal(drawn == NO_CODE, broken)


@both_generations
def test_a_top_k_of_2_draws_the_two_that_stand_out(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.full((2, len(SETTINGS), CHANNELS, FEW), -1e30)
    logits[..., 3] = logits[..., 11] = 1
    batch = replace(batch_of(FEW), top_k=torch.full((len(SETTINGS),), 2))
    drawn = assert_drawn_alike(config_of(generation), logits, batch, monkeypatch)
    assert {code for row in drawn.tolist() for code in row} == {3, 11}


@triton.jit
def _chances(seeds, steps, chances, channels):  # type: ignore[no-untyped-def]
    slot, channel = tl.program_id(0), tl.program_id(1)
    chance = _chance(tl.load(seeds + slot), tl.load(steps + slot), channel, channels)
    tl.store(chances + slot * channels + channel, chance)


def test_chances_are_the_same_numbers_on_every_device() -> None:
    seeds = torch.tensor([0, 1, 2**31, 2**32 + 5, 2**62 + 12345, 2**63 - 1, -1, -(2**40)])
    steps = torch.tensor([0, 3071, 1, 2**20, 7, 300, 2, 5])
    chances = torch.empty(len(seeds), 9)
    _chances[(len(seeds), 9)](seeds, steps, chances, 9)
    assert torch.equal(chances, uniform(seeds, steps, 9))


@both_generations
def test_a_boundary_excuses_a_difference_and_nothing_else_does(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(generation)
    with pytest.raises(AssertionError):
        draw = FusedDraw.__call__
        monkeypatch.setattr(FusedDraw, "__call__", lambda *args: draw(*args).roll(1, 0))
        assert_drawn_alike(config, few_logits("tied", 1), batch_of(FEW), monkeypatch)

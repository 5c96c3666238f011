"""The sampler against its rules written as loops, for both generations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.reference import pick, shares
from tests.models import CPU, THREE_CHANNELS
from worker.dia.config import DiaConfig, Generation
from worker.engine.random import uniform
from worker.engine.sampling import NO_CODE, Sampler, SamplingBatch
from worker.engine.sequence import SamplingParams

EOS, VOCABULARY, CHANNELS = 16, 20, 3  # as in Dia: after EOS there are three more ids
both_generations = pytest.mark.parametrize("generation", list(Generation))

temperatures = st.one_of(st.just(0.0), st.floats(0.05, 3.0))
params = st.builds(
    SamplingParams,
    cfg_scale=st.floats(0.0, 6.0),
    temperature=temperatures,
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(1, VOCABULARY),
)


def config_of(generation: Generation) -> DiaConfig:
    return replace(
        THREE_CHANNELS,
        generation=generation,
        decoder=replace(THREE_CHANNELS.decoder, vocabulary=VOCABULARY),
        eos_id=EOS,
        pad_id=EOS + 1,
        bos_id=EOS + 2,
    )


def batch_of(settings: list[SamplingParams]) -> SamplingBatch:
    def column(name: str) -> Tensor:
        return torch.tensor([float(getattr(params, name)) for params in settings])

    top_k, seed = column("top_k").long(), column("seed").long()
    return SamplingBatch(
        column("cfg_scale"),
        column("temperature"),
        column("top_p"),
        top_k,
        seed,
        torch.zeros_like(seed),
        int(top_k.max()),
    )


def random_logits(rows: int, seed: int, eos_push: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, rows, CHANNELS, VOCABULARY, generator=generator) * 3
    both[:, :, 0, EOS] += eos_push
    return both[0], both[1]


def draw(
    generation: Generation,
    logits: tuple[Tensor, Tensor],
    settings: list[SamplingParams],
    chances: Tensor,
) -> list[list[int]]:
    drawn: list[list[int]] = (
        Sampler(config_of(generation), CPU)
        .choose(torch.stack(logits), batch_of(settings), chances)
        .tolist()
    )
    return drawn


@both_generations
@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    settings=st.lists(params, min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    eos_push=st.sampled_from([0.0, 2.0, 5.0, 12.0]),
)
def test_codes_are_drawn_by_the_documented_rules_in_their_order(
    generation: Generation, settings: list[SamplingParams], seed: int, eos_push: float
) -> None:
    rows = len(settings)
    blind, seeing = random_logits(rows, seed, eos_push)
    chances = uniform(torch.arange(rows) + seed, torch.zeros(rows, dtype=torch.long), CHANNELS)
    drawn = draw(generation, (blind, seeing), settings, chances)
    config = config_of(generation)
    for row, params in enumerate(settings):
        alone = draw(
            generation,
            (blind[row : row + 1], seeing[row : row + 1]),
            [params],
            chances[row : row + 1],
        )
        assert alone == [drawn[row]]
        for c in range(CHANNELS):
            options = shares(config, c, blind[row, c].tolist(), seeing[row, c].tolist(), params)
            assert drawn[row][c] == pick(options, chances[row, c].item())


@both_generations
@settings(deadline=None, max_examples=50)
@given(params=params, seed=st.integers(0, 2**31))
def test_special_ids_are_never_drawn_however_likely(
    generation: Generation, params: SamplingParams, seed: int
) -> None:
    blind, seeing = random_logits(8, seed)
    seeing[:, :, EOS + 1 :] += 100
    seeing[:, 1:, EOS] += 100
    chances = uniform(torch.arange(8), torch.arange(8), CHANNELS)
    for row in draw(generation, (blind, seeing), [params] * 8, chances):
        assert row[0] <= EOS
        assert max(row[1:]) < EOS


@both_generations
@pytest.mark.parametrize("top_k", [1, 3])
def test_a_valid_code_is_drawn_where_all_candidates_are_special(
    generation: Generation, top_k: int
) -> None:
    blind, seeing = torch.zeros(1, CHANNELS, VOCABULARY), torch.zeros(1, CHANNELS, VOCABULARY)
    seeing[..., EOS + 1 :] = 50  # the guided candidates of a top_k up to 3
    seeing[..., 5] = 1  # the best of the valid codes
    settings = [SamplingParams(temperature=1.0, top_k=top_k, top_p=1.0)]
    for chance in (0.001, 0.3, 0.999):
        drawn = draw(generation, (blind, seeing), settings, torch.full((1, CHANNELS), chance))
        if top_k == 1 or generation is Generation.JUNE:
            assert drawn == [[5, 5, 5]]
        assert max(drawn[0]) < EOS


@both_generations
def test_temperature_0_takes_the_likeliest_code_whatever_the_chance(generation: Generation) -> None:
    logits = random_logits(5, seed=3)
    settings = [SamplingParams(temperature=0.0, top_k=k, top_p=0.5) for k in (1, 4, 9, 16, 20)]
    draws = [draw(generation, logits, settings, torch.full((5, CHANNELS), u)) for u in (0.01, 0.99)]
    assert draws[0] == draws[1]
    blind, seeing = logits
    guided = seeing + 3.0 * (seeing - blind)
    for row in range(5):
        for c in range(1, CHANNELS):
            best = guided if generation is Generation.APRIL else seeing
            allowed = range(EOS)
            if generation is Generation.JUNE:
                kept = guided[row, c].topk(settings[row].top_k).indices.tolist()
                allowed = [i for i in kept if i < EOS]
            assert draws[0][row][c] == max(allowed, key=lambda i: best[row, c, i].item())


def drawn_first_channel(
    generation: Generation, scores: dict[int, float], draws: int = 2000, temperature: float = 1.0
) -> set[int]:
    """What channel 0 draws where both guidance rows have the same logits."""
    logits = torch.full((draws, CHANNELS, VOCABULARY), -20.0)
    for i, score in scores.items():
        logits[:, 0, i] = score
    chances = uniform(torch.arange(draws), torch.zeros(draws, dtype=torch.long), CHANNELS)
    settings = [SamplingParams(temperature=temperature, top_k=VOCABULARY, top_p=1.0)] * draws
    return {row[0] for row in draw(generation, (logits, logits), settings, chances)}


@both_generations
def test_the_end_is_never_drawn_where_another_code_is_likelier(generation: Generation) -> None:
    assert drawn_first_channel(generation, {3: 2.0, EOS: 1.9, 7: 1.0}) == {3, 7}


def test_in_0626_the_end_is_certain_where_it_is_the_likeliest() -> None:
    assert drawn_first_channel(Generation.JUNE, {3: 2.0, EOS: 2.1, 7: 1.0}) == {EOS}


def test_in_april_the_end_is_one_of_several_where_it_is_the_likeliest() -> None:
    assert drawn_first_channel(Generation.APRIL, {3: 2.0, EOS: 2.6, 7: 1.0}) == {3, EOS, 7}


def test_in_april_the_end_s_score_counts_four_fifths() -> None:
    likelier, not_enough = {3: 2.0, EOS: 2.6}, {3: 2.0, EOS: 2.4}
    assert drawn_first_channel(Generation.APRIL, likelier, draws=1, temperature=0.0) == {EOS}
    assert drawn_first_channel(Generation.APRIL, not_enough, draws=1, temperature=0.0) == {3}
    assert drawn_first_channel(Generation.JUNE, not_enough, draws=1, temperature=0.0) == {EOS}


@both_generations
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.3, top_k=VOCABULARY, top_p=1.0, cfg_scale=0.3),
        SamplingParams(temperature=1.3, top_k=7, top_p=0.95, cfg_scale=0.3),
        SamplingParams(temperature=2.5, top_k=12, top_p=0.7, cfg_scale=0.0),
    ],
)
def test_codes_are_drawn_as_often_as_they_are_likely(
    generation: Generation, params: SamplingParams
) -> None:
    draws = 20_000
    blind, seeing = (logits.expand(draws, -1, -1) for logits in random_logits(1, seed=12))
    chances = uniform(torch.arange(draws), torch.full((draws,), 4), CHANNELS)
    sampler = Sampler(config_of(generation), CPU)
    one = batch_of([params])
    batch = SamplingBatch(
        *(
            tensor.expand(draws)
            for tensor in (one.cfg_scale, one.temperature, one.top_p, one.top_k, one.seed, one.step)
        ),
        widest=one.widest,
    )
    drawn = sampler.choose(torch.stack([blind, seeing]), batch, chances)
    for c in range(CHANNELS):
        options = shares(
            config_of(generation), c, blind[0, c].tolist(), seeing[0, c].tolist(), params
        )
        counts = torch.bincount(drawn[:, c], minlength=VOCABULARY).tolist()
        assert all(i in options for i, count in enumerate(counts) if count)
        expected = {i: share * draws for i, share in options.items()}
        chi_square = sum((counts[i] - n) ** 2 / n for i, n in expected.items())
        freedom = max(1, len(expected) - 1)
        assert chi_square < freedom + 6 * math.sqrt(2 * freedom)
        assert len(expected) > 1 or c == 0


@both_generations
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_no_code_and_leave_other_channels_alone(
    generation: Generation, temperature: float
) -> None:
    blind, seeing = random_logits(1, seed=3)
    settings = [SamplingParams(temperature=temperature, top_k=5)]
    chances = torch.full((1, CHANNELS), 0.5)
    (healthy,) = draw(generation, (blind, seeing), settings, chances)
    seeing[0, 1, 4] = torch.nan  # one number of one channel
    (row,) = draw(generation, (blind, seeing), settings, chances)
    assert row == [healthy[0], NO_CODE, healthy[2]]


def test_of_equally_likely_codes_the_lower_id_comes_first() -> None:
    logits = torch.zeros(2, 1, CHANNELS, VOCABULARY)
    logits[:, 0, :, 5] = -0.0  # equals its neighbours
    settings = [SamplingParams(temperature=1.0, top_k=8, top_p=1.0)]
    for generation in Generation:
        drawn = [
            draw(generation, (logits[0], logits[1]), settings, torch.full((1, CHANNELS), u))[0][1]
            for u in (0.01, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.99)
        ]
        assert drawn == list(range(8))


@both_generations
def test_guidance_of_0_ignores_the_unconditional_row(generation: Generation) -> None:
    blind, seeing = random_logits(4, seed=8)
    chances = uniform(torch.arange(4), torch.arange(4), CHANNELS)
    settings = [SamplingParams(cfg_scale=0.0)] * 4
    settings = [replace(params, top_k=10) for params in settings]
    assert draw(generation, (blind, seeing), settings, chances) == draw(
        generation, (blind.flip(0), seeing), settings, chances
    )


@both_generations
def test_at_full_size_every_setting_of_a_batch_keeps_to_its_own_filters(
    generation: Generation,
) -> None:
    sampler = Sampler(replace(THREE_CHANNELS, generation=generation), CPU)
    generator = torch.Generator().manual_seed(2)
    blind, seeing = torch.randn(2, 3, CHANNELS, 1028, generator=generator)
    settings = [
        SamplingParams(top_k=1, temperature=2.0),
        SamplingParams(top_k=1028, top_p=1.0),
        SamplingParams(top_k=35, top_p=0.01),
    ]
    chances = torch.full((3, CHANNELS), 0.9)
    together = sampler.choose(torch.stack([blind, seeing]), batch_of(settings), chances)
    for row, params in enumerate(settings):
        one = slice(row, row + 1)
        alone = sampler.choose(
            torch.stack([blind[one], seeing[one]]), batch_of([params]), chances[one]
        )
        assert torch.equal(together[one], alone)

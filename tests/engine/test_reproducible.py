"""The same job gives the same codes whatever runs beside it, in a precision where it matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.engine.test_engine import assert_equal_codes, codes_of
from tests.engine.test_graphs import Recorder
from tests.models import NINE_CHANNELS, random_codes, random_model
from worker.dia.config import Generation
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.options import EngineOptions
from worker.engine.sequence import SamplingParams, Sequence

SLOTS = 5
PLAIN = EngineOptions(same_shapes=True)
both_generations = pytest.mark.parametrize("generation", list(Generation))


WIDE = replace(
    NINE_CHANNELS,
    encoder=replace(NINE_CHANNELS.encoder, hidden=128, intermediate=256, head_dim=32),
    decoder=replace(
        NINE_CHANNELS.decoder, hidden=256, intermediate=768, head_dim=64, cross_head_dim=32
    ),
)


@cache
def half_model(generation: Generation) -> DiaModel:
    """In bfloat16, and with sums long enough, another order is soon another code."""
    model = random_model(replace(WIDE, generation=generation)).to(torch.bfloat16)
    model.prepare()
    return model


def wanted(seed: int) -> Sequence:
    prompt = random_codes((0, 11, 30)[seed % 3], 9, seed)
    text = encode_text("[S1] The same words, whoever else is speaking.")
    return Sequence(text, prompt, 50, SamplingParams(seed=seed, temperature=1.3))


def neighbours() -> list[Sequence]:
    return [
        Sequence(
            encode_text("[S2] Ha! " * length),
            random_codes(frames, 9, frames),
            new,
            SamplingParams(seed=frames),
        )
        for length, frames, new in ((1, 100, 40), (8, 0, 120), (2, 9, 5), (3, 25, 40))
    ]


def spoken(model: DiaModel, options: EngineOptions, among: Callable[[Engine], None]) -> Tensor:
    """The codes of one sequence in an engine where `among` has brought the company."""
    engine, sequence = Engine(model, SLOTS, options), wanted(4)
    among(engine)
    engine.add(sequence)
    while sequence.codes is None:
        engine.step()
    return sequence.codes


def nobody(engine: Engine) -> None:
    del engine


def company(engine: Engine) -> None:
    for each in neighbours():
        engine.add(each)


def company_well_under_way(engine: Engine) -> None:
    company(engine)
    for _ in range(23):
        engine.step()


@both_generations
@pytest.mark.parametrize("among", [company, company_well_under_way])
def test_a_job_gives_the_codes_of_its_lone_run_in_any_company_whenever_it_comes(
    generation: Generation, among: Callable[[Engine], None]
) -> None:
    model = half_model(generation)
    have, want = spoken(model, PLAIN, among), spoken(model, PLAIN, nobody)
    assert_equal_codes([have], [want])


def test_without_the_promise_this_company_does_change_codes() -> None:
    """So the tests above can fail."""
    model = half_model(Generation.JUNE)
    have, want = (spoken(model, EngineOptions(), among) for among in (company, nobody))
    assert not torch.equal(have, want)


def test_recorded_steps_and_late_looks_change_none_of_them() -> None:
    model = half_model(Generation.JUNE)
    recorded = replace(PLAIN, graphs=True, record=Recorder(), steps_between_looks=4)
    have, want = spoken(model, recorded, company), spoken(model, PLAIN, nobody)
    assert_equal_codes([have], [want])


def test_the_second_job_with_a_voice_gives_the_codes_of_the_first() -> None:
    engine = Engine(half_model(Generation.JUNE), SLOTS, PLAIN)
    first, second = (codes_of(engine.generate([wanted(5)])) for _ in range(2))
    assert_equal_codes(first, second)


def test_only_the_largest_step_is_recorded() -> None:
    recorder = Recorder()
    options = replace(PLAIN, graphs=True, record=recorder)
    engine = Engine(half_model(Generation.JUNE), SLOTS, options)
    engine.runner.warm()
    engine.generate([wanted(1), *neighbours()])
    assert recorder.recorded == 1
    assert set(recorder.shapes) == {SLOTS}

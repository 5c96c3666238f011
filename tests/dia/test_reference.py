"""The model against Dia written the long way, for both generations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.dia.reference import decoder_logits, encode_padded
from tests.models import (
    NINE_CHANNELS,
    golden,
    prompt_logits,
    random_codes,
    random_model,
    relative_error,
    shape_for,
    small_model,
)
from worker.dia.checkpoint import export_dia
from worker.dia.config import Generation
from worker.dia.delay import delay_prompt
from worker.dia.layouts import Layout
from worker.dia.tokenizer import encode_text
from worker.engine.runner import Runner
from worker.engine.sequence import Sequence

TEXT = encode_text("[S1] Two words. [S2] Sure?")
TOLERANCE = 1e-5  # of the largest value, float32

both_generations = pytest.mark.parametrize("generation", list(Generation))


def prompted(frames: int, channels: int, text: list[int] = TEXT) -> Sequence:
    return Sequence(text, random_codes(frames, channels), max_new_frames=1)


@both_generations
def test_text_is_encoded_as_if_it_had_been_padded_to_the_longest(generation: Generation) -> None:
    vectors = golden(generation)
    with torch.inference_mode():
        have = vectors.model.encode(torch.tensor(TEXT))
    want = encode_padded(vectors.native, vectors.config, TEXT)
    assert relative_error(have, want[: len(TEXT)]) < TOLERANCE


@both_generations
def test_a_text_of_nothing_gives_the_same_vector_at_every_position(generation: Generation) -> None:
    vectors = golden(generation)
    encoded = encode_padded(vectors.native, vectors.config, [0] * len(TEXT))
    assert (encoded - encoded[0]).abs().max() < 1e-5
    with torch.inference_mode():
        alone = vectors.model.encode(torch.zeros(1, dtype=torch.long))
    assert relative_error(alone.expand_as(encoded), encoded) < TOLERANCE


@both_generations
@pytest.mark.parametrize("channels", [3, 9])
def test_both_guidance_rows_equal_a_pass_with_padding_and_real_cross_attention(
    generation: Generation, channels: int
) -> None:
    model = small_model(generation, channels)
    config, tensors = model.config, export_dia(model, Layout.NATIVE)
    runner, sequence = Runner(model, slots=2), prompted(40, channels)
    runner.start([(1, sequence)])
    tokens = runner.state.history[1, : sequence.prompt_frames]
    blind, seeing = prompt_logits(runner, 1, sequence, tokens)
    assert relative_error(seeing, decoder_logits(tensors, config, TEXT, tokens)) < TOLERANCE
    nothing = [0] * len(TEXT)
    assert relative_error(blind, decoder_logits(tensors, config, nothing, tokens)) < TOLERANCE


@both_generations
def test_the_unconditional_row_is_the_same_whatever_the_length_of_the_text(
    generation: Generation,
) -> None:
    vectors = golden(generation)
    tokens = delay_prompt(random_codes(20, 9), vectors.config.delays, 1026)[:21]
    short, long = (
        decoder_logits(vectors.native, vectors.config, [0] * length, tokens) for length in (1, 90)
    )
    assert relative_error(short, long) < TOLERANCE


@both_generations
def test_a_voice_s_unconditional_keys_and_values_do_not_depend_on_the_text(
    generation: Generation,
) -> None:
    runner = Runner(small_model(generation), slots=2)
    runner.start([(0, prompted(12, 3))])
    runner.start([(1, prompted(12, 3, encode_text("[S1] Something else, and longer.")))])
    k, v = runner.cache.k[..., :12, :], runner.cache.v[..., :12, :]
    assert torch.equal(k[:, 0, 0], k[:, 1, 0])
    assert torch.equal(v[:, 0, 0], v[:, 1, 0])
    first, *later = (k[:, 0, 1] - k[:, 1, 1]).abs().amax((1, 2, 3))
    assert first == 0  # the first layer has not seen the text yet
    assert all(difference > 0.01 for difference in later)


@both_generations
def test_decoding_a_prompt_at_once_equals_decoding_it_step_by_step(generation: Generation) -> None:
    model = small_model(generation)
    at_once, stepwise = Runner(model, 1), Runner(model, 1)
    sequence = prompted(30, 3)
    at_once.start([(0, sequence)])
    at_once.step(shape_for(at_once, sequence))
    stepwise.start([(0, sequence)])
    stepwise.cache.k.zero_()
    stepwise.cache.v.zero_()
    stepwise.state.position[0] = 0
    for _ in range(31):
        stepwise.step(shape_for(stepwise, sequence))
    assert at_once.logits is not None
    assert stepwise.logits is not None
    assert relative_error(stepwise.logits, at_once.logits) < TOLERANCE


def test_the_generations_differ_on_the_same_weights() -> None:
    june = random_model(NINE_CHANNELS)
    april = random_model(replace(NINE_CHANNELS, generation=Generation.APRIL))
    logits = []
    for model in (june, april):
        runner = Runner(model, slots=1)
        sequence = prompted(5, 9)
        runner.start([(0, sequence)])
        runner.step(shape_for(runner, sequence))
        assert runner.logits is not None
        logits.append(runner.logits)
    assert torch.equal(logits[0][0], logits[1][0])  # nothing to rotate without text
    assert relative_error(logits[0][1], logits[1][1]) > 0.01


def test_half_precision_keeps_norms_rotary_tables_and_logits_in_float32() -> None:
    model = small_model(Generation.JUNE)
    exact = Runner(model, slots=1)
    half = random_model(model.config).to(torch.bfloat16)
    half.prepare()
    coarse = Runner(half, slots=1)
    for runner in (exact, coarse):
        sequence = prompted(20, 3)
        runner.start([(0, sequence)])
        runner.step(shape_for(runner, sequence))
    assert exact.logits is not None
    assert coarse.logits is not None
    assert half.rotary.dtype == torch.float32
    assert coarse.cache.k.dtype == torch.bfloat16
    assert relative_error(coarse.logits, exact.logits) < 0.1

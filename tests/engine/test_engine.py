"""The engine: batches, slots, endings, cancellation; against Dia written the long way."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.reference import generate_slowly
from tests.models import CPU, golden, random_codes, random_model, small_model
from worker.dia.checkpoint import export_dia
from worker.dia.config import Generation
from worker.dia.layouts import Layout
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.kernels.ops import Ops
from worker.engine.kernels.plain import plain_ops
from worker.engine.sequence import SamplingParams, Sequence
from worker.errors import InvalidInput
from worker.parity import case_sequences

both_generations = pytest.mark.parametrize("generation", list(Generation))

TEXTS = ("[S1] Hi.", "[S1] Somewhat longer. [S2] Yes?", "[S2] Ah (laughs) ha!")


def request(seed: int = 1, prompt_frames: int = 0, new: int = 12, text: int = 0) -> Sequence:
    return Sequence(
        encode_text(TEXTS[text]),
        random_codes(prompt_frames, 3, seed=seed + 100),
        new,
        SamplingParams(seed=seed, top_k=35 + seed, temperature=1.0 + seed / 10),
    )


def several() -> list[Sequence]:
    """Six different requests; the same six each time."""
    return [request(seed, (0, 5, 17)[seed % 3], 4 + 2 * seed, seed % 3) for seed in range(6)]


def codes_of(sequences: list[Sequence]) -> list[Tensor]:
    codes = [sequence.codes for sequence in sequences]
    assert all(each is not None for each in codes)
    return [each for each in codes if each is not None]


def alone(model: DiaModel, sequence: Sequence) -> Tensor:
    return codes_of(Engine(model, slots=1).generate([sequence]))[0]


def assert_equal_codes(have: list[Tensor], want: list[Tensor]) -> None:
    assert [each.shape for each in have] == [each.shape for each in want]
    assert all(torch.equal(*pair) for pair in zip(have, want, strict=True))


def biased_towards_the_end(generation: Generation) -> DiaModel:
    """A model that ends by itself after some frames."""
    model = random_model(small_model(generation).config, seed=6)
    model.decoder.logits.weight[model.config.eos_id].mul_(2.2)
    return model


# --- against the long way ---


@both_generations
@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    seed=st.integers(0, 2**62),
    prompt_frames=st.integers(0, 9),
    new=st.integers(1, 9),
    text=st.integers(0, 2),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([1, 3, 35, 1028]),
    top_p=st.sampled_from([0.5, 0.95, 1.0]),
)
def test_codes_are_those_of_a_generation_without_cache_batch_or_shortcuts(
    generation: Generation,
    seed: int,
    prompt_frames: int,
    new: int,
    text: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    model = small_model(generation)
    sequence = Sequence(
        encode_text(TEXTS[text]),
        random_codes(prompt_frames, 3, seed=seed % 1000),
        new,
        SamplingParams(seed, 2.0, temperature, top_p, top_k),
    )
    wanted, ended = generate_slowly(model.config, export_dia(model, Layout.NATIVE), sequence)
    assert alone(model, sequence).tolist() == wanted
    assert sequence.ended is ended


@both_generations
def test_a_generation_that_the_model_ends_is_that_of_the_long_way_too(
    generation: Generation,
) -> None:
    model = biased_towards_the_end(generation)
    tensors = export_dia(model, Layout.NATIVE)
    lengths = []
    for seed in range(4):
        sequence = request(seed, prompt_frames=3, new=16)
        wanted, ended = generate_slowly(model.config, tensors, sequence)
        assert alone(model, sequence).tolist() == wanted
        assert sequence.ended is ended
        lengths.append(len(wanted) if ended else None)
    assert len(set(lengths) - {None}) >= 2  # some were ended, not all at the same frame


# --- batches, slots and arrivals ---


@both_generations
def test_a_seed_gives_the_same_codes_alone_and_in_any_company(generation: Generation) -> None:
    model = small_model(generation)
    wanted = [alone(model, sequence) for sequence in several()]
    for slots in (2, 6, 9):
        assert_equal_codes(codes_of(Engine(model, slots).generate(several())), wanted)


@both_generations
def test_a_seed_gives_the_same_codes_in_every_slot(generation: Generation) -> None:
    model = small_model(generation)
    wanted = [alone(model, sequence) for sequence in several()]
    for turn in (1, 4):
        order = [(i + turn) % 6 for i in range(6)]
        shuffled = several()
        Engine(model, slots=6).generate([shuffled[i] for i in order])
        assert_equal_codes(codes_of(shuffled), wanted)


@both_generations
@settings(deadline=None, max_examples=4, derandomize=True)
@given(
    arrivals=st.lists(st.integers(0, 12), min_size=6, max_size=6),
    slots=st.integers(1, 4),
    cancelled=st.sets(st.integers(0, 5), max_size=2),
)
def test_a_seed_gives_the_same_codes_whenever_it_arrives_and_whoever_leaves(
    generation: Generation, arrivals: list[int], slots: int, cancelled: set[int]
) -> None:
    model = small_model(generation)
    wanted = [alone(model, sequence) for sequence in several()]
    engine, sequences = Engine(model, slots), several()
    step = 0
    while step <= max(arrivals) or engine.scheduler:
        for arrival, sequence in zip(arrivals, sequences, strict=True):
            if arrival == step:
                engine.add(sequence)
        for row in cancelled:
            if step == arrivals[row] + 5:
                sequences[row].cancelled.set()
        engine.step()
        step += 1
    for row, sequence in enumerate(sequences):
        if sequence.codes is None:
            assert row in cancelled
        else:
            assert torch.equal(sequence.codes, wanted[row])


def test_different_seeds_say_it_differently() -> None:
    codes = codes_of(Engine(small_model(Generation.JUNE), 8).generate(map(request, range(8))))
    assert len({tuple(each.flatten().tolist()) for each in codes}) == 8


def test_the_same_seed_twice_in_a_batch_gives_the_same_codes() -> None:
    first, second = codes_of(
        Engine(small_model(Generation.APRIL), 2).generate([request(), request()])
    )
    assert torch.equal(first, second)


def test_more_sequences_than_slots_all_finish_first_come_first_served() -> None:
    engine, sequences = Engine(small_model(Generation.JUNE), slots=3), several() + several()
    for sequence in sequences:
        engine.add(sequence)
    started: list[int] = []
    while engine.scheduler:
        engine.step()
        assert len(engine.scheduler.running) <= 3
        started += [i for i, each in enumerate(sequences) if each.steps and i not in started]
    assert started == list(range(12))
    assert_equal_codes(codes_of(sequences[:6]), codes_of(sequences[6:]))


def test_a_slot_s_past_does_not_reach_its_next_sequence() -> None:
    model = small_model(Generation.JUNE)
    engine = Engine(model, slots=1)
    wanted = alone(model, request())
    engine.generate([request(seed=7, prompt_frames=17, new=100, text=1)])
    assert torch.equal(codes_of(engine.generate([request()]))[0], wanted)


def test_a_slot_recovers_from_a_sequence_that_overflowed() -> None:
    model = small_model(Generation.JUNE)
    engine, wanted = Engine(model, slots=2), [alone(model, request(seed)) for seed in (1, 2)]
    cache = engine.runner.cache
    for kept in (cache.k, cache.v, cache.text_k, cache.text_v):
        kept.fill_(torch.nan)
    assert_equal_codes(codes_of(engine.generate([request(1), request(2)])), wanted)


def test_an_overflow_spoils_its_own_sequence_and_no_other() -> None:
    model = small_model(Generation.JUNE)
    engine, sequences = Engine(model, slots=3), [request(seed) for seed in (1, 2, 3)]
    for sequence in sequences:
        engine.add(sequence)
    engine.step()
    engine.runner.cache.v[:, 1, 1, :, 0] = torch.nan
    while engine.scheduler:
        engine.step()
    wanted = [alone(model, request(seed)) for seed in (1, 3)]
    assert_equal_codes(codes_of(sequences[::2]), wanted)
    assert sequences[1].codes is None
    assert str(sequences[1].failure) == (
        "engine_error: the model gave no numbers; another seed may mend it"
    )


def test_longer_than_a_block_of_cache_is_the_same_in_company_and_alone() -> None:
    model = small_model(Generation.JUNE)  # attention reads the cache in steps of 128 positions
    long = [request(1, prompt_frames=2, new=155), request(2, prompt_frames=17, new=140)]
    wanted = [alone(model, replace(sequence)) for sequence in long]
    assert_equal_codes(codes_of(Engine(model, 3).generate([request(), *long]))[1:], wanted)


# --- golden cases in batches ---


def greedy_case(generation: Generation, case: str) -> list[Sequence]:
    vectors = golden(generation)
    text = "[S1] Hello there. [S2] Hi! (laughs) [S1] Bye."
    texts = {"plain": [text], "prompted": [text], "batch": [text, "[S1] Un café, please."]}
    prompts = {"plain": [None], "prompted": ["prompt_a"], "batch": ["prompt_a", "prompt_b"]}
    content = {
        "text": texts[case],
        "prompt": prompts[case],
        "max_tokens": 96 if case == "plain" else 128,
    }
    greedy = {"cfg_scale": 3.0, "cfg_filter_top_k": 45, "temperature": 0.0}
    return case_sequences(content, greedy, vectors.expected, vectors.config)


def expected_codes(generation: Generation, *cases: str) -> list[Tensor]:
    vectors = golden(generation)
    return [
        vectors.codes(case, row) for case in cases for row in range(2 if case == "batch" else 1)
    ]


@both_generations
def test_each_row_of_the_reference_s_batch_is_the_same_alone(generation: Generation) -> None:
    model = golden(generation).model
    codes = [alone(model, sequence) for sequence in greedy_case(generation, "batch")]
    assert_equal_codes(codes, expected_codes(generation, "batch"))


@both_generations
def test_all_the_reference_s_cases_in_one_batch_with_slots_to_spare(
    generation: Generation,
) -> None:
    cases = ("plain", "prompted", "batch")
    sequences = [each for case in cases for each in greedy_case(generation, case)]
    codes = codes_of(Engine(golden(generation).model, slots=7).generate(sequences))
    assert_equal_codes(codes, expected_codes(generation, *cases))


@both_generations
def test_the_reference_s_cases_arriving_one_by_one_in_used_slots(generation: Generation) -> None:
    cases = ("batch", "plain", "prompted")
    sequences = [each for case in cases for each in greedy_case(generation, case)]
    engine = Engine(golden(generation).model, slots=2)
    for i, sequence in enumerate(sequences):
        engine.add(sequence)
        for _ in range(7 + 20 * i):
            engine.step()
    while engine.scheduler:
        engine.step()
    assert_equal_codes(codes_of(sequences), expected_codes(generation, *cases))


# --- endings and progress ---


@both_generations
def test_the_limit_ends_a_sequence_at_exactly_its_frames(generation: Generation) -> None:
    for new in (1, 2, 3, 4, 20):
        sequence = request(new=new)
        codes = alone(small_model(generation), sequence)
        assert codes.shape == (new, 3)
        assert sequence.frames == new
        assert not sequence.ended
        assert sequence.steps == new + 3  # and the longest delay


@both_generations
def test_a_sequence_that_the_model_ends_says_so(generation: Generation) -> None:
    model = biased_towards_the_end(generation)
    sequences = [request(seed, new=100) for seed in range(6)]
    Engine(model, slots=6).generate(sequences)
    ended = [sequence for sequence in sequences if sequence.ended]
    assert ended
    for sequence in ended:
        assert sequence.codes is not None
        assert len(sequence.codes) == sequence.frames < 100


def test_codes_are_codec_frames_only() -> None:
    for codes in codes_of(Engine(biased_towards_the_end(Generation.APRIL), 6).generate(several())):
        assert codes.dtype == torch.long
        assert codes.numel() == 0 or 0 <= codes.min() <= codes.max() <= 1023


@pytest.mark.parametrize("prompt_frames", [0, 9])
def test_new_frames_are_reported_one_by_one_and_add_up(prompt_frames: int) -> None:
    told: list[int] = []
    sequence = request(prompt_frames=prompt_frames, new=20)
    sequence.on_frames = told.append
    alone(small_model(Generation.JUNE), sequence)
    assert sum(told) == sequence.frames == 20
    assert set(told) == {1}


def drawing(model: DiaModel, *codes: int) -> Ops:
    """Plain operations, but every channel always draws these codes, one a slot."""
    drawn = torch.tensor(codes).unsqueeze(1).expand(-1, 3)
    plain = plain_ops(model.config, CPU)
    return replace(plain, draw=lambda logits, _: drawn[: logits.shape[1]].clone())


def test_an_end_at_the_first_frame_gives_no_frames() -> None:
    model, sequence = small_model(Generation.JUNE), request(new=10)
    engine = Engine(model, slots=1, ops=drawing(model, 1024))
    assert codes_of(engine.generate([sequence]))[0].shape == (0, 3)
    assert sequence.ended
    assert sequence.frames == 0


# --- refusals and cancellation ---


def test_a_sequence_that_can_never_fit_is_refused_and_not_queued() -> None:
    engine = Engine(small_model(Generation.JUNE), slots=1)
    with pytest.raises(InvalidInput, match=r"max_tokens is 158; .* valid is 1 to 157"):
        engine.add(request(new=158))
    with pytest.raises(InvalidInput, match="text takes 65 bytes"):
        engine.add(Sequence([65] * 65, random_codes(0, 3), 5))
    assert not engine.scheduler


def test_a_sequence_that_fits_exactly_is_generated_to_the_last_position() -> None:
    model = small_model(Generation.JUNE)
    assert len(alone(model, request(new=157))) == 157
    assert len(alone(model, request(prompt_frames=100, new=57))) == 57


def test_a_cancelled_sequence_gives_its_slot_to_the_next_at_once() -> None:
    model = small_model(Generation.JUNE)
    engine, long, next_one = Engine(model, slots=1), request(new=150), request(seed=2)
    engine.add(long)
    engine.add(next_one)
    for _ in range(5):
        assert engine.step() == []
    long.cancelled.set()
    assert engine.step() == [long]
    assert long.codes is None
    assert engine.scheduler.running == {0: next_one}
    while engine.scheduler:
        engine.step()
    assert_equal_codes(codes_of([next_one]), [alone(model, request(seed=2))])


def test_a_sequence_cancelled_while_it_waits_is_never_started() -> None:
    engine, first, waiting = Engine(small_model(Generation.JUNE), 1), request(), request(2)
    engine.add(first)
    engine.add(waiting)
    engine.step()
    waiting.cancelled.set()
    assert engine.step() == [waiting]
    assert waiting.steps == 0
    while engine.scheduler:
        engine.step()
    assert first.codes is not None


def test_a_neighbour_s_cancellation_changes_nothing_for_the_others() -> None:
    model = small_model(Generation.APRIL)
    engine, sequences = Engine(model, slots=6), several()
    for sequence in sequences:
        engine.add(sequence)
    for _ in range(4):
        engine.step()
    sequences[2].cancelled.set()
    while engine.scheduler:
        engine.step()
        assert engine.runner.state.position[2] == 0  # nothing is decoded there any more
    kept = [sequence for i, sequence in enumerate(sequences) if i != 2]
    wanted = [alone(model, sequence) for i, sequence in enumerate(several()) if i != 2]
    assert_equal_codes(codes_of(kept), wanted)


def test_after_clearing_the_engine_serves_as_if_nothing_had_been() -> None:
    model = small_model(Generation.JUNE)
    engine, sequences = Engine(model, slots=2), several()
    for sequence in sequences:
        engine.add(sequence)
    for _ in range(5):
        engine.step()
    assert sorted(map(id, engine.clear())) == sorted(map(id, sequences))
    assert not engine.scheduler
    assert_equal_codes(codes_of(engine.generate([request()])), [alone(model, request())])


# --- nothing left behind ---


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_many_chunks_leave_no_tensors_behind() -> None:
    engine = Engine(small_model(Generation.JUNE), slots=4)

    def speak(chunks: int) -> int:
        for sequence in engine.generate(request(seed % 5, seed % 3, 2) for seed in range(chunks)):
            assert sequence.codes is not None
        del sequence
        return live_tensors()

    after_few = speak(2)
    assert speak(200) == after_few
    assert engine.scheduler.width == 0


def test_the_cache_is_allocated_once() -> None:
    engine = Engine(small_model(Generation.JUNE), slots=2)
    tensors = (engine.runner.cache.k, engine.runner.cache.text_v, engine.runner.state.history)
    before = [tensor.data_ptr() for tensor in tensors]
    engine.generate(several())
    assert [tensor.data_ptr() for tensor in tensors] == before
    assert engine.runner.cache.k.shape == (2, 2, 2, 2, 160, 8)  # [L, S, 2, Hkv, T, D]

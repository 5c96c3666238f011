"""Admission of several sequences at once, and prompts whose keys and values are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.test_engine import alone, assert_equal_codes, codes_of
from tests.models import golden, random_codes, relative_error, small_model
from worker.dia.config import Generation
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.footprint import AT_ONCE
from worker.engine.options import EngineOptions
from worker.engine.prefill import PromptCache
from worker.engine.runner import Runner
from worker.engine.sequence import SamplingParams, Sequence
from worker.errors import OutOfMemory

both_generations = pytest.mark.parametrize("generation", list(Generation))

TEXTS = ("[S1] Hi.", "[S1] Somewhat longer, [S2] and then some.", "[S2] Ah!", "[S1] Hm? [S2] No.")
VOICES = [random_codes(frames, 3, seed=frames) for frames in (7, 19, 9, 12)]


def spoken(text: int, voice: int | None, seed: int = 3) -> Sequence:
    prompt = random_codes(0, 3) if voice is None else VOICES[voice]
    return Sequence(encode_text(TEXTS[text]), prompt, 10, SamplingParams(seed=seed))


def counted(model: DiaModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (rows, rows without text) of every pass over prompts, as they come."""
    passes: list[tuple[int, int]] = []
    decode = DiaModel.decode

    def noted(
        self: DiaModel, tokens: Tensor, positions: Tensor, attend: object, unconditional_rows: int
    ) -> Tensor:
        passes.append((tokens.shape[0], unconditional_rows))
        return decode(self, tokens, positions, attend, unconditional_rows)  # type: ignore[arg-type]

    monkeypatch.setattr(DiaModel, "decode", noted)
    return passes


@both_generations
def test_prompts_of_any_lengths_decoded_together_leave_what_each_leaves_alone(
    generation: Generation,
) -> None:
    model = small_model(generation)
    sequences = [spoken(text, voice) for text, voice in ((0, 1), (1, 0), (2, 3), (3, 2))]
    together = Runner(model, AT_ONCE)
    together.start(list(enumerate(sequences)))
    for slot, sequence in enumerate(sequences):
        one = Runner(model, AT_ONCE)
        one.start([(slot, sequence)])
        frames, text = sequence.prompt_frames, len(sequence.text_ids)
        for name, length in (("k", frames), ("v", frames), ("text_k", text), ("text_v", text)):
            have = getattr(together.cache, name)[:, slot, ..., :length, :]
            want = getattr(one.cache, name)[:, slot, ..., :length, :]
            assert relative_error(have, want) < 1e-5


@both_generations
def test_a_batch_with_and_without_voices_speaks_as_each_does_alone(generation: Generation) -> None:
    model = small_model(generation)
    kinds = [(0, 1), (1, None), (2, 0), (3, 2), (0, None), (1, 3), (2, 1)]
    have = Engine(model, len(kinds)).generate([spoken(*kind) for kind in kinds])
    assert_equal_codes(codes_of(have), [alone(model, spoken(*kind)) for kind in kinds])


def test_a_voice_is_decoded_without_text_once_for_all_chunks_that_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model(Generation.JUNE)
    passes = counted(model, monkeypatch)
    engine = Engine(model, AT_ONCE)
    engine.generate([spoken(text, 0, seed=text) for text in range(4)])
    assert passes == [(5, 1)]  # four rows with their texts, one without
    engine.generate([spoken(2, 0), spoken(3, 1)])
    assert passes[1:] == [(3, 1)]  # the first voice is kept, the second is new


def test_a_kept_voice_gives_the_codes_of_one_decoded_anew() -> None:
    model = small_model(Generation.APRIL)
    keeping, forgetful = Engine(model, 1), Engine(model, 1, EngineOptions(prompts=0))
    for _ in range(2):
        for text in range(4):
            have, want = keeping.generate([spoken(text, 1)]), forgetful.generate([spoken(text, 1)])
            assert_equal_codes(codes_of(have), codes_of(want))


def test_more_voices_than_places_all_speak_as_they_should() -> None:
    model = small_model(Generation.JUNE)
    engine = Engine(model, 2, EngineOptions(prompts=AT_ONCE))
    voices = [random_codes(5 + seed, 3, seed) for seed in range(9)]
    order = [0, 1, 2, 0, 3, 4, 5, 6, 7, 8, 0, 8, 1, 2]
    have = engine.generate([replace(spoken(0, 0), prompt=voices[index]) for index in order])
    want = [alone(model, replace(spoken(0, 0), prompt=voices[index])) for index in order]
    assert_equal_codes(codes_of(have), want)


def test_a_prompt_longer_than_a_place_is_decoded_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model(Generation.JUNE)
    passes = counted(model, monkeypatch)
    engine = Engine(model, 1, EngineOptions(prompt_frames=8))
    engine.generate([spoken(0, 0), spoken(0, 1), spoken(0, 1), spoken(0, 0)])
    assert passes == [(2, 1), (2, 1), (2, 1), (1, 0)]


def test_voices_kept_take_no_memory_beyond_their_places() -> None:
    cache = Runner(small_model(Generation.JUNE), 1).cache
    kept = PromptCache(cache, places=4, frames=16)
    addresses = set()
    for voice in range(20):
        room = kept.room(bytes([voice]), 10)
        assert room is not None
        addresses.add(room.k.data_ptr())
    assert len(addresses) == 4
    assert [kept.get(bytes([voice])) is not None for voice in range(14, 20)] == [False] * 2 + [
        True
    ] * 4


def test_the_voice_used_least_recently_makes_room() -> None:
    kept = PromptCache(Runner(small_model(Generation.JUNE), 1).cache, places=4, frames=16)
    for voice in range(4):
        kept.room(bytes([voice]), 3)
    kept.get(bytes([0]))
    kept.room(bytes([9]), 3)
    assert kept.get(bytes([1])) is None
    assert kept.get(bytes([0])) is not None


def test_where_memory_runs_out_sequences_start_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(Generation.JUNE)
    passes, decode = [], DiaModel.decode

    def small_device(
        self: DiaModel, tokens: Tensor, positions: Tensor, attend: object, unconditional_rows: int
    ) -> Tensor:
        passes.append(tokens.shape[0])
        if tokens.shape[0] > 2:
            raise torch.OutOfMemoryError("the device is full")
        return decode(self, tokens, positions, attend, unconditional_rows)  # type: ignore[arg-type]

    kinds = [(0, 1), (1, 0), (2, 3), (3, 2)]
    wanted = [alone(model, spoken(*kind)) for kind in kinds]
    monkeypatch.setattr(DiaModel, "decode", small_device)
    have = Engine(model, AT_ONCE).generate([spoken(*kind) for kind in kinds])
    assert_equal_codes(codes_of(have), wanted)
    assert passes == [8, 2, 2, 2, 2]


def test_a_sequence_too_large_even_alone_fails_and_its_neighbours_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("the device is full")

    model = small_model(Generation.JUNE)
    wanted = alone(model, spoken(1, None))
    monkeypatch.setattr(DiaModel, "decode", full)
    too_much, small = spoken(0, 0), spoken(1, None)  # without a prompt there is none to decode
    Engine(model, 2).generate([too_much, small])
    assert isinstance(too_much.failure, OutOfMemory)
    assert too_much.codes is None
    assert_equal_codes(codes_of([small]), [wanted])


@both_generations
def test_texts_encoded_together_are_as_each_is_alone(generation: Generation) -> None:
    model = golden(generation).model
    texts = [torch.tensor(encode_text(text)) for text in TEXTS]
    with torch.inference_mode():
        for text, together in zip(texts, model.encode_all(texts), strict=True):
            assert relative_error(together, model.encode(text)) < 1e-5

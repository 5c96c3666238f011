"""What the model is given for each chunk of a job, and what is made of its attempts."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.service.dialogue import DIALOGUE, HOP, SPLIT, A, B, C, D
from tests.service.jobs import Answer, run, silence_for
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.speech import Speech
from worker.take import Spoken


def codes_of(sequence: Sequence) -> torch.Tensor:
    assert sequence.codes is not None
    return sequence.codes


def test_a_speaker_is_prompted_with_the_codes_and_words_it_was_first_heard_with(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    run(service, text=DIALOGUE, seed=100, **SPLIT)
    first, second = codes_of(submitted[100]), codes_of(submitted[101])
    assert first.shape[0] > 0
    assert second.shape[0] > 0
    nothing = first[:0]
    expected = {
        100: (f"[S1] {A}", [nothing]),
        101: (f"[S1] {A} [S2] {B} [S1]", [first]),
        102: (f"[S1] {A} {C}", [first]),
        103: (f"[S1] {A} [S2] {B} {D} [S1]", [first, second]),
    }
    assert set(submitted) == set(expected)
    for seed, (text, codes) in expected.items():
        assert submitted[seed].text_ids == encode_text(text)
        assert torch.equal(submitted[seed].prompt, torch.cat(codes))


def test_the_settings_of_the_job_reach_every_generation(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    sampling: Answer = {"cfg_scale": 2.5, "temperature": 0.9, "top_p": 0.8, "cfg_filter_top_k": 20}
    run(service, text=f"[S1] {A} [S2] {B}", seed=3, max_tokens=9, **SPLIT, **sampling)
    for seed in (3, 4):
        params = submitted[seed].params
        assert (params.cfg_scale, params.temperature, params.top_p, params.top_k) == (
            2.5, 0.9, 0.8, 20,
        )  # fmt: skip
        assert submitted[seed].max_new_frames == 9


def test_the_engine_can_tell_the_chunks_of_one_job_from_those_of_another(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    for seed in (10, 20):
        run(service, text=f"[S1] {A} [S2] {B}", seed=seed, max_tokens=9, **SPLIT)
    jobs = {seed: sequence.job for seed, sequence in submitted.items()}
    assert None not in jobs.values()
    assert jobs[10] == jobs[11] != jobs[20] == jobs[21]


def test_all_chunks_of_a_job_must_be_done_by_the_same_time(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    job = parse_job(
        {"text": f"[S1] {A} [S2] {B}", "seed": 1, "max_tokens": 9, **SPLIT}, GenerationSettings()
    )
    earliest = time.monotonic() + 500
    asyncio.run(service.speak(job, timeout_s=500))
    first, second = (submitted[seed].deadline for seed in (1, 2))
    assert first is not None
    assert first == second
    assert earliest <= first <= time.monotonic() + 500


def test_a_job_without_a_time_limit_may_take_as_long_as_it_needs(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    run(service, seed=1)
    assert submitted[1].deadline is None


def test_a_text_is_tokenised_once_for_all_attempts_at_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def counted(text: str, max_bytes: int) -> list[int]:
        texts.append(text)
        return encode_text(text, max_bytes)

    monkeypatch.setattr("worker.speech.encode_text", counted)
    seeds = lengths_of_attempts(monkeypatch, 3, 20, 9)
    run(service, text=f"[S1] {A}")
    assert len(seeds) == 3
    assert texts == [f"[S1] {A}"]


def test_progress_is_told_after_each_chunk_in_order_and_not_after_the_last(
    service: Service,
) -> None:
    told: list[tuple[int, int]] = []

    async def follow() -> None:
        home = threading.current_thread()

        def note(done: int, total: int) -> None:
            assert threading.current_thread() is home
            told.append((done, total))

        job = parse_job({"text": DIALOGUE, "max_tokens": 9, **SPLIT}, GenerationSettings())
        await service.run(job, "job", on_chunk=note)

    asyncio.run(follow())
    assert told == [(1, 4), (2, 4), (3, 4)]


def test_a_job_of_one_chunk_has_no_progress_to_tell(service: Service) -> None:
    told: list[tuple[int, int]] = []
    job = parse_job({"text": A, "max_tokens": 9}, GenerationSettings())
    asyncio.run(service.speak(job, on_chunk=lambda *numbers: told.append(numbers)))
    assert told == []


def test_a_library_voice_prompts_every_chunk_and_the_other_speaker_is_anchored_beside_it(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    result = run(service, text=DIALOGUE, voice_id="narrator_warm", seed=200, **SPLIT)
    voice = service.voices.get("narrator_warm")
    assert voice.speakers == ("S1",)
    assert result["voice_id"] == "narrator_warm"
    second = codes_of(submitted[201])
    expected = {
        200: (f"{voice.transcript} {A}", [voice.codes]),
        201: (f"{voice.transcript} [S2] {B} [S1]", [voice.codes]),
        202: (f"{voice.transcript} {C}", [voice.codes]),
        203: (f"{voice.transcript} [S2] {B} {D} [S1]", [voice.codes, second]),
    }
    for seed, (text, codes) in expected.items():
        assert submitted[seed].text_ids == encode_text(text)
        assert torch.equal(submitted[seed].prompt, torch.cat(codes))


def test_the_prompt_is_not_part_of_the_audio(service: Service) -> None:
    result = run(service, text=f"[S1] {A}", voice_id="narrator_warm", max_tokens=12)
    assert result["audio_length"] <= 12 * HOP


def test_s2_first_is_read_as_s1_and_reported_as_it_was_written(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    result = run(service, text=f"[S2] {A} [S1] {B}", seed=1, **SPLIT)
    assert [chunk["speaker"] for chunk in result["chunks"]] == ["S2", "S1"]
    assert [chunk["text"] for chunk in result["chunks"]] == [f"[S2] {A}", f"[S1] {B}"]
    assert submitted[2].text_ids == encode_text(f"[S1] {A} [S2] {B} [S1]")


def test_a_chunk_of_both_names_its_speakers_in_the_order_of_their_words(service: Service) -> None:
    result = run(service, text="[S2] Hello there. [S1] Hello to you.")
    assert [chunk["speaker"] for chunk in result["chunks"]] == ["S2+S1"]


def test_chunks_that_wait_for_nothing_run_side_by_side(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    step = Engine.step

    def spy(engine: Engine) -> list[Sequence]:
        finished = step(engine)
        widths.append(len(engine.scheduler.running))
        return finished

    monkeypatch.setattr(Engine, "step", spy)
    run(service, text=f"[S1] {A} {B} {C} {D}", chunk_size=60, voice_id="narrator_warm")
    assert max(widths) == 4


def lengths_of_attempts(monkeypatch: pytest.MonkeyPatch, *lengths: int) -> list[int]:
    """As if the model ended its generations by itself after so many frames; returns the seeds."""
    seeds: list[int] = []

    def submit(loop: EngineLoop, sequence: Sequence) -> Future[Sequence]:
        sequence.frames, sequence.ended = lengths[len(seeds)], True
        sequence.codes = torch.zeros(sequence.frames, 9, dtype=torch.long)
        seeds.append(sequence.params.seed)
        future: Future[Sequence] = Future()
        future.set_result(sequence)
        return future

    monkeypatch.setattr(EngineLoop, "submit", submit)
    return seeds


def test_a_chunk_that_lacks_words_is_spoken_again_with_another_seed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = lengths_of_attempts(monkeypatch, 3, 200)
    result = run(service, text=f"[S1] {A}", seed=5)
    assert len(set(seeds)) == 2
    assert seeds[0] == 5
    assert result["chunks"][0]["frames"] == 200
    assert result["chunks"][0]["seed"] == seeds[1]
    assert not [warning for warning in result["warnings"] if "words are missing" in warning]


def test_where_every_attempt_lacks_words_the_longest_is_given_and_the_user_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = lengths_of_attempts(monkeypatch, 3, 20, 9)
    result = run(service, text=f"[S1] {A}", seed=5)
    assert result["chunks"][0]["frames"] == 20
    assert result["chunks"][0]["seed"] == seeds[1]
    (told,) = [warning for warning in result["warnings"] if "words are missing" in warning]
    assert told.startswith("chunk 1 has 20 frames")


def test_at_temperature_zero_another_seed_would_say_the_same_and_is_not_tried(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = lengths_of_attempts(monkeypatch, 3)
    run(service, text=f"[S1] {A}", seed=5, temperature=0)
    assert seeds == [5]


def test_a_voice_that_was_never_heard_is_missed_with_the_true_reason(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence_for(service, monkeypatch, chunk=0)
    result = run(service, text=f"[S1] {A} [S1] {B}", **SPLIT)
    (lost,) = [warning for warning in result["warnings"] if "does not continue" in warning]
    assert "chunk 2 does not continue the voices of chunk 1: that one is silent" in lost
    assert result["chunks"][0]["frames"] == 0
    assert result["chunks"][0]["end"] == result["chunks"][1]["start"] == 0


def test_a_voice_that_does_not_fit_any_more_is_missed_with_the_reason(
    service: Service, monkeypatch: pytest.MonkeyPatch, submitted: dict[int, Sequence]
) -> None:
    speak_one = Speech._speak_one

    async def endless(self: Speech, *arguments: Any) -> Spoken:
        spoken = await speak_one(self, *arguments)
        long = spoken.codes[:1].expand(3000, -1)
        return replace(spoken, codes=long) if spoken.chunk.index == 0 else spoken

    monkeypatch.setattr(Speech, "_speak_one", endless)
    result = run(service, text=f"[S1] {A} {B}", seed=1, **SPLIT)
    (lost,) = [warning for warning in result["warnings"] if "does not continue" in warning]
    assert "chunk 2 does not continue the voices of chunk 1: there was no room" in lost
    assert submitted[2].prompt_frames == 0

"""What users get for a job, from its text to its file; spoken by the small model."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import io
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from worker.audio.decode import read_audio
from worker.config import load_settings
from worker.delivery import FittingDelivery, KeepingDelivery
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import EngineError, InvalidConfig, InvalidInput, UnknownVoice
from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings, Settings
from worker.speech import Speech
from worker.startup import resolve_device, start
from worker.take import Spoken

HOP = 512
RATE = 44_100
A = "The harbor is quiet, and the boats wait for wind."
B = "I have not seen the lighthouse keeper for a week."
C = "He went to the mainland to buy a new lamp, I hear."
D = "Then who is it that I see up there every evening?"
DIALOGUE = f"[S1] {A} [S2] {B} [S1] {C} [S2] {D}"
SPLIT: dict[str, Any] = {"allow_multiple_speakers": False, "chunk_size": 60}

Answer = dict[str, Any]


def run(service: Service, job_id: str = "job-1", **fields: Any) -> Answer:
    return asyncio.run(answer(service, job_id, **fields))


async def answer(service: Service, job_id: str = "job-1", **fields: Any) -> Answer:
    fields = {"text": "[S1] Hello there.", "max_tokens": 24, **fields}
    return await service.run(parse_job(fields, GenerationSettings()), job_id)


def audio_of(answer: Answer) -> bytes:
    return base64.b64decode(answer["audio"])


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> dict[int, Sequence]:
    """What the engine was asked for, by seed; codes are there once a job is done."""
    sequences: dict[int, Sequence] = {}
    submit = EngineLoop.submit

    def spy(loop: EngineLoop, sequence: Sequence) -> Future[Sequence]:
        sequences[sequence.params.seed] = sequence
        return submit(loop, sequence)

    monkeypatch.setattr(EngineLoop, "submit", spy)
    return sequences


def codes_of(sequence: Sequence) -> torch.Tensor:
    assert sequence.codes is not None
    return sequence.codes


# The answer


@pytest.fixture(scope="module")
def spoken(service: Service) -> Answer:
    return run(service, text=DIALOGUE, seed=1000, **SPLIT)


def test_the_answer_has_the_documented_fields_and_no_others(spoken: Answer) -> None:
    assert set(spoken) == {
        "audio", "job_id", "format", "sample_rate", "audio_length", "duration", "generation_time",
        "chunks_processed", "chunks", "seed", "voice_id", "model", "warnings",
    }  # fmt: skip
    assert set(spoken["chunks"][0]) == {"text", "speaker", "start", "end", "frames", "seed"}
    assert set(spoken["model"]) == {"name", "generation", "dtype", "fingerprint"}


def test_the_chunks_say_the_whole_text_in_order_with_its_speakers(spoken: Answer) -> None:
    assert [(chunk["speaker"], chunk["text"]) for chunk in spoken["chunks"]] == [
        ("S1", f"[S1] {A}"), ("S2", f"[S2] {B}"), ("S1", f"[S1] {C}"), ("S2", f"[S2] {D}"),
    ]  # fmt: skip
    assert spoken["chunks_processed"] == 4


def test_the_timeline_has_no_gaps_and_ends_with_the_audio(spoken: Answer) -> None:
    chunks = spoken["chunks"]
    assert chunks[0]["start"] == 0
    assert all(one["end"] == other["start"] for one, other in pairwise(chunks))
    assert chunks[-1]["end"] == spoken["duration"]
    for chunk in chunks:
        seconds = chunk["frames"] * HOP / RATE
        assert chunk["end"] - chunk["start"] == pytest.approx(seconds, abs=0.0011)


def test_the_length_is_what_the_file_holds_and_what_the_chunks_add_up_to(spoken: Answer) -> None:
    samples, rate = soundfile.read(io.BytesIO(audio_of(spoken)), dtype="int16")
    assert (rate, samples.ndim, len(samples)) == (RATE, 1, spoken["audio_length"])
    assert sum(chunk["frames"] for chunk in spoken["chunks"]) * HOP == spoken["audio_length"]
    assert spoken["duration"] == round(spoken["audio_length"] / RATE, 3)
    assert np.abs(samples).max() > 0


def test_the_answer_says_with_what_it_can_be_made_again(spoken: Answer) -> None:
    assert spoken["seed"] == 1000
    assert [chunk["seed"] for chunk in spoken["chunks"]] == [1000, 1001, 1002, 1003]
    model = spoken["model"]
    assert (model["name"], model["generation"], model["dtype"]) == ("dia-tiny", "0626", "float32")
    assert len(model["fingerprint"]) >= 8
    assert spoken["voice_id"] is None
    assert spoken["generation_time"] > 0


def test_the_user_is_told_that_an_untrained_model_makes_noise(spoken: Answer) -> None:
    assert "the model is untrained: the audio is noise, not speech" in spoken["warnings"]


def test_the_user_is_told_of_chunks_that_were_stopped_at_their_limit(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    result = run(service, max_tokens=3, seed=42)
    stopped = [warning for warning in result["warnings"] if "stopped at its limit" in warning]
    assert not submitted[42].ended
    assert len(stopped) == 1
    assert "chunk 1" in stopped[0]
    assert "3 frames" in stopped[0]


def test_the_log_has_one_line_on_a_finished_job(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        result = run(service, job_id="job-7")
    lines = [record.getMessage() for record in caplog.records if "job-7" in record.getMessage()]
    assert len(lines) == 1
    assert "in 1 chunks" in lines[0]
    assert result["audio"][:40] not in lines[0]


# The same again


def test_the_same_seed_gives_the_same_bytes(service: Service, spoken: Answer) -> None:
    again = run(service, text=DIALOGUE, seed=1000, **SPLIT)
    assert audio_of(again) == audio_of(spoken)


def test_another_seed_gives_other_speech(service: Service, spoken: Answer) -> None:
    other = run(service, text=DIALOGUE, seed=77, **SPLIT)
    assert audio_of(other) != audio_of(spoken)


def test_a_seed_of_minus_one_is_drawn_anew_and_reported(service: Service) -> None:
    one, other = run(service, seed=-1), run(service, seed=-1)
    assert one["seed"] != other["seed"]
    assert audio_of(run(service, seed=one["seed"])) == audio_of(one)


def test_seeds_of_chunks_stay_in_range_at_the_largest_seed(service: Service) -> None:
    result = run(service, text=f"[S1] {A} [S2] {B}", seed=2**32 - 1, **SPLIT)
    assert [chunk["seed"] for chunk in result["chunks"]] == [2**32 - 1, 0]


def test_jobs_side_by_side_get_what_each_would_get_alone(service: Service) -> None:
    jobs: list[dict[str, Any]] = [
        {"text": DIALOGUE, "seed": 5, **SPLIT},
        {"text": f"[S1] {C}", "seed": 6, "voice_id": "narrator_warm"},
        {"text": f"[S2] {D} [S1] {A}", "seed": 7, "temperature": 0.8, "cfg_filter_top_k": 50},
    ]

    async def together() -> list[Answer]:
        return list(await asyncio.gather(*(answer(service, **fields) for fields in jobs)))

    alone = [run(service, **fields) for fields in jobs]
    assert [audio_of(one) for one in asyncio.run(together())] == [audio_of(one) for one in alone]


# What the model is given


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


def silence_for(service: Service, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """As if the model had ended that chunk at once."""
    speak_one = Speech._speak_one

    async def silenced(self: Speech, *arguments: Any) -> Spoken:
        spoken = await speak_one(self, *arguments)
        silent = replace(spoken, codes=spoken.codes[:0])
        return silent if spoken.chunk.index == chunk else spoken

    monkeypatch.setattr(Speech, "_speak_one", silenced)


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


# Formats


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_every_file_holds_the_audio_that_the_answer_describes(
    service: Service, format: str
) -> None:
    result = run(service, output_format=format, seed=9)
    assert result["format"] == format
    with av.open(io.BytesIO(audio_of(result))) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.channels) == (result["sample_rate"], 1)
        samples = sum(frame.samples for frame in container.decode(stream))
    assert samples == pytest.approx(result["audio_length"], abs=3 * 1152)  # padding of the codecs
    assert result["duration"] == pytest.approx(
        sum(chunk["frames"] for chunk in result["chunks"]) * HOP / RATE, abs=0.001
    )


def test_pcm_is_the_samples_of_the_wav_without_its_header(service: Service) -> None:
    wav, pcm = (run(service, output_format=format, seed=9) for format in ("wav", "pcm"))
    assert len(audio_of(pcm)) == 2 * pcm["audio_length"]
    assert audio_of(wav).endswith(audio_of(pcm))


# Clones of real recordings


CLONE_TEXT = "The quick brown fox jumps over the lazy dog near the river bank."


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that has nothing to do with this worker: another synthesiser's."""
    file = tmp_path_factory.mktemp("recording") / "speech.wav"
    if espeak := shutil.which("espeak-ng"):
        command = [espeak, "-w", str(file), CLONE_TEXT]
    elif flite := shutil.which("flite"):
        command = [flite, "-t", CLONE_TEXT, "-o", str(file)]
    else:
        pytest.skip("neither espeak-ng nor flite is installed")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return file


@pytest.fixture(scope="module")
def stereo_mp3(synthesised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recording") / "speech.mp3"
    mono = read_audio(synthesised, 48_000)
    soundfile.write(file, np.stack([mono, 0.5 * mono], axis=1), 48_000, format="MP3")
    return file


def clone(service: Service, recording: Path, text: str, **fields: Any) -> Answer:
    encoded = base64.b64encode(recording.read_bytes()).decode()
    return run(service, reference_audio=encoded, reference_text=text, **fields)


def check_clone(service: Service, recording: Path, text: str, used: dict[int, Sequence]) -> None:
    result = clone(service, recording, text, seed=31)
    voice = service.voices.clone(recording.read_bytes(), text)
    assert torch.equal(used[31].prompt, voice.codes)
    assert voice.codes.shape[0] >= 86
    assert used[31].text_ids == encode_text(f"[S1] {text} Hello there.")
    assert result["voice_id"] is None
    assert result["audio_length"] > 0


def test_the_recording_of_a_shipped_voice_can_be_cloned(
    service: Service, voice_folder: Path, submitted: dict[int, Sequence]
) -> None:
    text = service.voices.get("narrator_deep").transcript.removeprefix("[S1] ")
    check_clone(service, voice_folder / "narrator_deep" / "audio.flac", text, submitted)


def test_a_clone_of_a_library_s_recording_speaks_as_that_voice_does(
    service: Service, voice_folder: Path
) -> None:
    text = service.voices.get("narrator_deep").transcript
    cloned = clone(service, voice_folder / "narrator_deep" / "audio.flac", text)
    assert audio_of(cloned) == audio_of(run(service, voice_id="narrator_deep"))


def test_a_recording_of_another_synthesiser_can_be_cloned(
    service: Service, synthesised: Path, submitted: dict[int, Sequence]
) -> None:
    check_clone(service, synthesised, CLONE_TEXT, submitted)


def test_a_stereo_mp3_at_another_rate_can_be_cloned(
    service: Service, stereo_mp3: Path, submitted: dict[int, Sequence]
) -> None:
    info = soundfile.info(stereo_mp3)
    assert (info.samplerate, info.channels) == (48_000, 2)
    check_clone(service, stereo_mp3, CLONE_TEXT, submitted)


def test_what_is_not_as_recommended_about_a_recording_is_told(
    service: Service, synthesised: Path
) -> None:
    warnings = clone(service, synthesised, CLONE_TEXT)["warnings"]
    assert any("s are recommended" in warning for warning in warnings)


def test_an_unknown_voice_is_refused_before_anything_is_generated(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    with pytest.raises(UnknownVoice):
        run(service, voice_id="narrator_worm")
    assert not submitted


# When it does not go well


def engine_of(service: Service) -> Engine:
    return service._engine.engine


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(poll(), timeout=60)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What asyncio says of tasks that nobody waited for, and the like."""
    heard: list[str] = []
    yield heard
    gc.collect()
    assert heard == []


async def watched(heard: list[str], work: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: heard.append(context["message"]))
    await work
    gc.collect()  # "never retrieved" is said when the task is forgotten
    await asyncio.sleep(0)


def test_a_cancelled_job_frees_its_slots_and_leaves_no_task_behind(
    service: Service, complaints: list[str]
) -> None:
    async def cancelled() -> None:
        text = f"[S1] {A} {B} {C} {D} " * 3
        voice: Answer = {"voice_id": "narrator_warm", "chunk_size": 60, "max_tokens": 2000}
        task = asyncio.create_task(answer(service, text=text, temperature=0.1, **voice))
        await until(lambda: len(engine_of(service).scheduler.running) >= 4)
        running = list(engine_of(service).scheduler.running.values())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await until(lambda: not engine_of(service).scheduler)
        assert all(sequence.codes is None for sequence in running)  # none went on to its end
        assert len((await answer(service))["chunks"]) == 1

    asyncio.run(watched(complaints, cancelled()))


def test_a_failing_engine_fails_the_job_once_and_takes_the_next(
    service: Service, monkeypatch: pytest.MonkeyPatch, complaints: list[str]
) -> None:
    async def failing() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", lambda _engine: 1 / 0)
            with pytest.raises(EngineError, match="generation failed") as caught:
                await answer(service, text=DIALOGUE, **SPLIT)
        assert caught.value.retryable
        assert "ZeroDivisionError" not in str(caught.value)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert (await answer(service))["audio_length"] > 0

    asyncio.run(watched(complaints, failing()))


def test_one_failed_chunk_ends_the_others(
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
    submitted: dict[int, Sequence],
) -> None:
    speak_one = Speech._speak_one

    async def second_fails(self: Speech, chunk: Any, *rest: Any) -> Spoken:
        if chunk.index == 1:
            await until(lambda: len(engine_of(service).scheduler.running) == 3)
            raise EngineError("the second chunk fails")
        return await speak_one(self, chunk, *rest)

    async def failing() -> None:
        text = f"[S1] {A} {B} {C} {D}"
        voice: Answer = {"voice_id": "narrator_warm", "chunk_size": 60, "max_tokens": 2000}
        with pytest.raises(EngineError, match="the second chunk fails"):
            await answer(service, text=text, temperature=0.1, **voice)
        await until(lambda: not engine_of(service).scheduler)
        assert [sequence.codes for sequence in submitted.values()] == [None] * 3

    monkeypatch.setattr(Speech, "_speak_one", second_fails)
    asyncio.run(watched(complaints, failing()))


def test_a_job_whose_every_chunk_is_silent_fails_in_words(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence_for(service, monkeypatch, chunk=0)
    with pytest.raises(EngineError, match="no audio"):
        run(service)


def test_a_text_that_must_not_be_cut_and_does_not_fit_is_refused(service: Service) -> None:
    with pytest.raises(InvalidInput, match="enable_chunking is false"):
        run(service, text=A * 20, enable_chunking=False)


def live_tensors() -> int:
    gc.collect()
    # By type: isinstance looks into every object, and some warn when they are looked at.
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_a_job_of_two_hundred_chunks_leaves_no_more_behind_than_one_of_two(
    service: Service,
) -> None:
    def chunks(count: int) -> int:
        text = " ".join(f"[S{1 + at % 2}] It is line {at} of this play." for at in range(count))
        sizes: Answer = {"chunk_size": 40, "allow_multiple_speakers": False, "max_tokens": 2}
        return int(run(service, text=text, **sizes)["chunks_processed"])

    assert chunks(2) == 2
    before = live_tensors()
    assert chunks(200) == 200
    # While it is idle, the engine's thread remembers what it finished last: a sequence a slot,
    # each with its prompt and its codes.
    assert live_tensors() <= before + 2 * engine_of(service).slots


# Delivery and start


def kept(service: Service, folder: Path) -> Service:
    delivery = KeepingDelivery(FittingDelivery(), folder)
    return Service(service._engine, service._codec, service.voices, delivery, service.model)


def test_kept_results_lie_in_the_folder_under_the_job_s_id(
    service: Service, tmp_path: Path
) -> None:
    keeping = kept(service, tmp_path / "results")
    result = run(keeping, job_id="job-1_a", output_format="mp3")
    assert (tmp_path / "results" / "job-1_a.mp3").read_bytes() == audio_of(result)


def test_a_job_s_id_cannot_lead_out_of_the_folder(service: Service, tmp_path: Path) -> None:
    job_id = "../../a b/c"
    run(kept(service, tmp_path / "results"), job_id=job_id)
    digest = hashlib.sha256(job_id.encode()).hexdigest()[:32]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        f"______a_b_c.{digest}.wav"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_job_done_twice_is_kept_once(service: Service, tmp_path: Path) -> None:
    keeping = kept(service, tmp_path)
    run(keeping, job_id="job")
    run(keeping, job_id="job")
    assert [path.name for path in tmp_path.iterdir()] == ["job.wav"]


def test_a_trained_model_has_no_notice(service: Service, tmp_path: Path) -> None:
    assert not any("untrained" in warning for warning in run(kept(service, tmp_path))["warnings"])


def test_a_folder_for_results_that_cannot_be_made_stops_the_start(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "results"
    environment = {"DIA_MODEL": str(tiny_model), "KEEP_RESULTS_IN": str(folder)}
    with pytest.raises(InvalidConfig, match=r"KEEP_RESULTS_IN.*cannot be made"):
        start(load_settings(environment))


@pytest.mark.parametrize("name", ["cuda:99", "mps", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"'{name}'.*valid are auto, cpu"):
        resolve_device(name)


def test_a_bare_cuda_is_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ("auto", "cuda", "cuda:1")
    assert [str(resolve_device(name)) for name in names] == ["cuda:0", "cuda:0", "cuda:1"]


def test_preloaded_voices_are_in_memory_before_the_first_job(tiny_settings: Settings) -> None:
    library = tiny_settings.voice_library.model_copy(update={"preload_voices": ("narrator_warm",)})
    service = start(tiny_settings.model_copy(update={"voice_library": library}))
    try:
        assert service.voices.get_performance_stats()["cached_voices"] == ["narrator_warm"]
    finally:
        service.close()


def test_a_closed_service_refuses_jobs(tiny_settings: Settings) -> None:
    service = start(tiny_settings)
    service.close()
    with pytest.raises(EngineError, match="closed"):
        run(service)

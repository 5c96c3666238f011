"""What users get for a job: audio, an answer that describes it, and the same again by its seed."""

from __future__ import annotations

import asyncio
import io
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.service.dialogue import DIALOGUE, HOP, RATE, SPLIT, A, B, C, D
from tests.service.jobs import Answer, answer, audio_of, run
from worker.engine.sequence import Sequence
from worker.service import Service


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

"""What users are told about a finished job beside its audio."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from worker.report import UNTRAINED, report, summary, timeline, warnings_of
from worker.schema import JobResult, ModelInfo, parse_job
from worker.script import Budget, write_script
from worker.settings import GenerationSettings
from worker.speech import Order, Reference
from worker.take import Spoken

TEXT = "[S2] It is late, and the last ferry left. [S1] Then we stay here and wait for the morning."
SCRIPT = write_script(TEXT, budget=Budget(1024, 3000), chunk_size=40, allow_multiple_speakers=False)
FRAME_S = 512 / 44_100
MODEL = ModelInfo(name="dia", generation="0626", dtype="bfloat16", fingerprint="0123456789")


def spoken(index: int, frames: int, ended: bool = True, limit: int = 400) -> Spoken:
    codes = torch.zeros(frames, 9, dtype=torch.long)
    return Spoken(SCRIPT.chunks[index].chunk, codes, 7 + index, ended, limit)


def result(*parts: Spoken, trained: bool = True, warnings: tuple[str, ...] = ()) -> JobResult:
    job = parse_job({"text": TEXT, "voice_id": "narrator"}, GenerationSettings())
    reference = Reference((), torch.zeros(0, 9, dtype=torch.long), warnings)
    order = Order(job, SCRIPT, reference, seed=7, started=time.monotonic() - 2)
    samples = 512 * sum(part.frames for part in parts)
    return report(
        order, parts, model=MODEL, trained=trained, frame_s=FRAME_S,
        format="wav", sample_rate=44_100, samples=samples,
    )  # fmt: skip


def test_each_chunk_is_told_with_its_words_speaker_and_place_in_the_audio() -> None:
    first, second = timeline([spoken(0, 100), spoken(1, 50)], SCRIPT, FRAME_S)
    assert (first.speaker, second.speaker) == ("S2", "S1")
    assert first.text == "[S2] It is late, and the last ferry left."
    assert (first.start, first.end) == (0, round(100 * FRAME_S, 3))
    assert (second.start, second.end) == (first.end, round(150 * FRAME_S, 3))
    assert (second.frames, second.seed) == (50, 8)


def test_the_result_names_voice_model_seed_and_length() -> None:
    told = result(spoken(0, 100), spoken(1, 200))
    assert (told.voice_id, told.model, told.seed) == ("narrator", MODEL, 7)
    assert (told.audio_length, told.duration) == (300 * 512, round(300 * FRAME_S, 3))
    assert told.chunks_processed == 2
    assert told.generation_time == pytest.approx(2, abs=0.5)
    assert told.warnings == []


def test_warnings_are_those_of_the_model_then_of_the_voice_then_of_the_chunks_in_order() -> None:
    parts = spoken(0, 2), spoken(1, 200, ended=False)
    told = result(*parts, trained=False, warnings=("the voice is noisy",)).warnings
    assert told[:2] == [UNTRAINED, "the voice is noisy"]
    assert told[2].startswith("chunk 1 has 2 frames, too few for its text")
    assert told[3].startswith("chunk 2 was stopped at its limit of 400 frames")
    assert len(told) == 4


def test_a_chunk_that_ended_as_it_should_has_no_warning() -> None:
    assert warnings_of(spoken(0, 200)) == []


@pytest.mark.parametrize(
    ("frames", "why"), [(0, "that one is silent"), (300, "there was no room for both")]
)
def test_a_voice_that_is_not_continued_is_told_with_the_reason(frames: int, why: str) -> None:
    (told,) = warnings_of(replace(spoken(1, 200), unheard=(spoken(0, frames),)))
    assert told.startswith(f"chunk 2 does not continue the voices of chunk 1: {why}")


def test_the_summary_says_how_fast_it_was_and_of_which_model() -> None:
    told = result(spoken(0, 100), spoken(1, 200), trained=False)
    line = summary(told.model_copy(update={"generation_time": 1.0}))
    assert line == (
        f"3.5 s of audio in 2 chunks, generated in 1.0 s (3.5 × realtime) by dia ({UNTRAINED})"
    )


def test_the_summary_does_not_divide_by_zero() -> None:
    told = result(spoken(0, 100), spoken(1, 200))
    assert "0.0 × realtime" in summary(told.model_copy(update={"generation_time": 0.0}))

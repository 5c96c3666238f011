"""Fields of a job that depend on each other: those in generation_params, and those of each mode."""

from __future__ import annotations

from typing import Any

import pytest

from tests.schema.jobs import CLONE, NAMED, RECORDING, SETTINGS, URL, job, refusal
from worker.schema import parse_job

# Nested parameters


def test_generation_params_are_the_same_fields() -> None:
    nested = {"seed": 5, "output_format": "mp3", "temperature": 1.0, "enable_chunking": False}
    assert job(generation_params=nested) == job(**nested)


def test_even_the_text_and_the_voice_may_be_nested() -> None:
    parsed = parse_job({"generation_params": {"text": "Hello.", "voice_id": "someone"}}, SETTINGS)
    assert (parsed.text, parsed.voice_id, parsed.voice_mode) == (
        "Hello.",
        "someone",
        "voice_library",
    )


@pytest.mark.parametrize(("outer", "inner"), [(5, 5), (3, 3.0), (3.0, 3)])
def test_a_field_given_twice_with_the_same_value_is_taken(outer: float, inner: float) -> None:
    assert job(cfg_scale=outer, generation_params={"cfg_scale": inner}).cfg_scale == outer


@pytest.mark.parametrize(
    ("name", "outer", "inner", "shown"),
    [
        ("seed", 5, 6, "5, and 6"),
        ("seed", 1, True, "1, and true"),
        ("seed", 0, False, "0, and false"),
        ("enable_chunking", True, 1, "true, and 1"),
        ("output_format", "mp3", "wav", "'mp3', and 'wav'"),
        ("text", "Hello.", "Goodbye.", "'Hello.', and 'Goodbye.'"),
    ],
)
def test_a_field_given_twice_with_different_values_is_refused(
    name: str, outer: Any, inner: Any, shown: str
) -> None:
    message = refusal(**{name: outer, "generation_params": {name: inner}})
    assert f"{name} is given twice: {shown} in generation_params" in message


@pytest.mark.parametrize(("outer", "inner"), [(None, 5), (5, None)])
def test_a_null_does_not_disagree_with_a_value(outer: int | None, inner: int | None) -> None:
    assert job(seed=outer, generation_params={"seed": inner}).seed == 5


def test_an_unknown_nested_field_is_refused_as_any_other() -> None:
    message = refusal(generation_params={"chunksize": 100})
    assert "'chunksize': no such field; did you mean chunk_size?" in message


def test_nested_values_have_the_same_ranges() -> None:
    assert "temperature: -1" in refusal(generation_params={"temperature": -1})


def test_params_within_params_are_refused_in_words_that_help() -> None:
    message = refusal(generation_params={"generation_params": {"seed": 1}})
    assert "generation_params holds generation_params" in message
    assert "did you mean" not in message


# Modes


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "dialogue"),
        ({"voice_id": "someone"}, "voice_library"),
        (CLONE, "clone"),
        ({"voice_mode": "dialogue"}, "dialogue"),
        ({"voice_mode": "voice_library", "voice_id": "someone"}, "voice_library"),
        ({"voice_mode": "clone", **CLONE}, "clone"),
        (NAMED, "clone"),
        ({"voice_mode": "clone", **NAMED}, "clone"),
    ],
)
def test_the_mode_is_what_the_other_fields_mean(fields: dict[str, Any], mode: str) -> None:
    assert job(**fields).voice_mode == mode


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"voice_mode": "voice_library"}, "voice_id is missing"),
        ({"voice_mode": "clone"}, "reference_audio is missing"),
        ({"voice_mode": "clone", "reference_audio": RECORDING}, "reference_text is missing"),
        ({"reference_audio": RECORDING}, "reference_text is missing"),
        ({"reference_audio": RECORDING, "reference_text": ""}, "reference_text is missing"),
        ({"reference_text": "[S1] What is said."}, "reference_audio is missing"),
        ({"voice_id": "someone", **CLONE}, "voice_id and reference_audio are both given"),
        ({"voice_id": "someone", **NAMED}, "voice_id and reference_audio_url are both given"),
        ({**CLONE, **NAMED}, "reference_audio and reference_audio_url are both given"),
        ({**NAMED, "reference_audio": ""}, "reference_audio and reference_audio_url are both"),
        ({"reference_audio_url": URL}, "reference_text is missing"),
        ({**NAMED, "reference_audio_url": ""}, "reference_audio_url is missing"),
        (
            {"voice_mode": "dialogue", **NAMED},
            "voice_mode is 'dialogue' and reference_audio_url is given",
        ),
        (
            {"voice_id": "someone", "reference_text": "What is said."},
            "voice_id and reference_text are both given",
        ),
        (
            {"voice_mode": "dialogue", "voice_id": "someone"},
            "voice_mode is 'dialogue' and voice_id is given",
        ),
        (
            {"voice_mode": "dialogue", **CLONE},
            "voice_mode is 'dialogue' and reference_audio is given",
        ),
        ({"voice_mode": "voice_library", **CLONE}, "voice_id is missing"),
        ({"voice_mode": "clone", "voice_id": "someone"}, "reference_audio is missing"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], words: str) -> None:
    assert words in refusal(**fields)

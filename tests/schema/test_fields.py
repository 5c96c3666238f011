"""What a job may say, and what users read when it says something else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.schema.jobs import RECORDING, SETTINGS, URL, job, refusal
from worker.errors import InvalidInput
from worker.schema import JobInput, parse_job
from worker.settings import GenerationDefaults, GenerationLimits, GenerationSettings

# Defaults


def test_a_text_alone_is_a_job_and_the_rest_is_as_documented() -> None:
    assert job().model_dump() == {
        "text": "Hello.",
        "voice_mode": "dialogue",
        "voice_id": None,
        "reference_audio": None,
        "reference_audio_url": None,
        "reference_text": None,
        "enable_chunking": True,
        "chunk_size": 120,
        "allow_multiple_speakers": True,
        "seed": 42,
        "cfg_scale": 3.0,
        "temperature": 1.3,
        "top_p": 0.95,
        "cfg_filter_top_k": 35,
        "max_tokens": None,
        "output_format": "wav",
        "output": "auto",
    }


def test_fields_left_out_get_the_defaults_of_the_settings() -> None:
    defaults = GenerationDefaults(
        enable_chunking=False,
        chunk_size=200,
        allow_multiple_speakers=False,
        seed=7,
        cfg_scale=2.0,
        temperature=1.0,
        top_p=0.9,
        cfg_filter_top_k=50,
        max_tokens=900,
        output_format="mp3",
    )
    parsed = job(GenerationSettings(defaults=defaults)).model_dump()
    assert {name: parsed[name] for name in GenerationDefaults.model_fields} == (
        defaults.model_dump()
    )


def test_what_the_job_says_wins_over_the_settings() -> None:
    defaults = GenerationDefaults(seed=7, output_format="mp3", enable_chunking=False)
    parsed = job(
        GenerationSettings(defaults=defaults), seed=0, output_format="flac", enable_chunking=True
    )
    assert (parsed.seed, parsed.output_format, parsed.enable_chunking) == (0, "flac", True)


@pytest.mark.parametrize("name", [*JobInput.model_fields, "generation_params"])
def test_null_is_the_same_as_leaving_a_field_out(name: str) -> None:
    if name == "text":
        assert "text is missing" in refusal(text=None)
    else:
        assert job(**{name: None}) == job()


def test_null_is_the_settings_default_and_not_no_value() -> None:
    settings = GenerationSettings(defaults=GenerationDefaults(max_tokens=300))
    assert job(settings, max_tokens=None).max_tokens == 300


# Ranges


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "a"),
        ("text", "a" * 10_000),
        ("enable_chunking", False),
        ("allow_multiple_speakers", False),
        ("chunk_size", 40),
        ("chunk_size", 500),
        ("seed", -1),
        ("seed", 0),
        ("seed", 2**32 - 1),
        ("cfg_scale", 0),
        ("cfg_scale", 10.0),
        ("temperature", 0),
        ("temperature", 2),
        ("top_p", 0.001),
        ("top_p", 1),
        ("cfg_filter_top_k", 1),
        ("cfg_filter_top_k", 1024),
        ("max_tokens", 1),
        ("max_tokens", 3056),
        *(("output_format", name) for name in ("wav", "flac", "mp3", "opus", "aac", "pcm")),
    ],
)
def test_values_at_the_edge_of_what_is_documented_are_taken(name: str, value: Any) -> None:
    assert getattr(job(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("text", 5, "must be text"),
        ("text", ["Hello."], "must be text"),
        ("voice_mode", "singing", "dialogue, voice_library or clone"),
        ("voice_mode", ["clone"], "dialogue, voice_library or clone"),
        ("voice_id", 5, "must be text"),
        ("enable_chunking", "true", "true or false"),
        ("enable_chunking", 1, "true or false"),
        ("allow_multiple_speakers", 0, "true or false"),
        ("chunk_size", 39, "from 40 to 500"),
        ("chunk_size", 501, "from 40 to 500"),
        ("chunk_size", 120.5, "from 40 to 500"),
        ("chunk_size", True, "from 40 to 500"),
        ("seed", -2, "-1 for one drawn at random"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("seed", True, "a whole number"),
        ("seed", 1.0, "a whole number"),
        ("seed", "42", "a whole number"),
        ("seed", 10**400, "a whole number"),
        ("cfg_scale", -0.1, "from 0 to 10"),
        ("cfg_scale", 10.1, "from 0 to 10"),
        ("cfg_scale", 10**400, "from 0 to 10"),
        ("temperature", -0.1, "from 0 to 2"),
        ("temperature", 2.1, "from 0 to 2"),
        ("temperature", float("nan"), "from 0 to 2"),
        ("temperature", float("inf"), "from 0 to 2"),
        ("temperature", True, "from 0 to 2"),
        ("temperature", "1.3", "from 0 to 2"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_p", 1.1, "above 0, at most 1"),
        ("cfg_filter_top_k", 0, "from 1 to 1024"),
        ("cfg_filter_top_k", 1025, "from 1 to 1024"),
        ("max_tokens", 0, "from 1 to 3056"),
        ("max_tokens", 3057, "from 1 to 3056"),
        ("max_tokens", True, "from 1 to 3056"),
        ("output_format", "ogg", "wav, flac, mp3, opus, aac or pcm"),
        ("output_format", "WAV", "wav, flac, mp3, opus, aac or pcm"),
        ("generation_params", [1], "must be an object"),
    ],
)
def test_other_values_are_refused_with_the_field_the_value_and_what_is_valid(
    name: str, value: Any, valid: str
) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"invalid_input: {name}")
    assert valid in message
    assert len(message) < 300


def test_a_message_repeats_the_value_that_was_refused() -> None:
    assert "temperature: -0.5 is not allowed" in refusal(temperature=-0.5)


def test_every_field_at_fault_is_named_at_once() -> None:
    message = refusal(temperature=-1, top_p=2, output_format="ogg")
    assert all(name in message for name in ("temperature: -1", "top_p: 2", "output_format: 'ogg'"))


def test_a_long_bad_value_is_cut_in_the_message() -> None:
    assert len(refusal(output_format="x" * 5000)) < 250


def test_a_missing_text_is_said_to_be_missing() -> None:
    with pytest.raises(InvalidInput, match="text is missing"):
        parse_job({}, SETTINGS)


def test_an_empty_text_is_said_to_be_empty() -> None:
    assert "text is empty; it must have 1 to 10000 characters" in refusal(text="")


def test_a_text_too_long_is_refused_with_both_lengths() -> None:
    assert "text is 10001 characters; it must have 1 to 10000" in refusal(text="a" * 10_001)


def test_the_longest_text_is_what_the_settings_say() -> None:
    settings = GenerationSettings(limits=GenerationLimits(max_text_length=20))
    assert job(settings, text="a" * 20).text == "a" * 20
    assert "1 to 20 characters" in refusal(settings, text="a" * 21)


@pytest.mark.parametrize("raw", [None, "Hello.", 5, ["text"], True, b"text", [{"text": "Hello."}]])
def test_an_input_that_is_no_object_is_refused(raw: Any) -> None:
    with pytest.raises(InvalidInput, match=r"input is .*; it must be an object with"):
        parse_job(raw, SETTINGS)


def test_a_checked_job_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        job().text = "Other words."


# Unknown fields


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chunksize", "chunk_size"),
        ("Temperature", "temperature"),
        ("voice", "voice_id"),
        ("generation_parameters", "generation_params"),
    ],
)
def test_an_unknown_field_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    message = refusal(**{name: 1})
    assert repr(name) in message
    assert f"did you mean {meant}?" in message


def test_a_field_that_resembles_none_is_refused_with_all_there_are() -> None:
    message = refusal(zzz=1)
    assert all(name in message for name in [*JobInput.model_fields, "generation_params"])


def test_an_unknown_field_is_refused_even_if_it_is_null() -> None:
    assert "no such field" in refusal(speed=None)


# Whatever comes


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)  # lone surrogates too: JSON can carry them
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from([*JobInput.model_fields, "generation_params", "chunksize", ""])
likely = values | st.sampled_from(
    ["Hello.", "clone", "voice_library", RECORDING, URL, "https://\ud800/", 42, 0.5, "mp3"]
)
flat = st.dictionaries(names, likely, max_size=5)
with_text = flat.map(lambda fields: {"text": "Hello.", **fields})
nested = st.builds(lambda outer, inner: {**outer, "generation_params": inner}, with_text, flat)


@settings(deadline=None, max_examples=300)
@given(values | flat | with_text | nested)
def test_whatever_comes_is_a_job_or_is_refused_as_invalid(raw: Any) -> None:
    try:
        parsed = parse_job(raw, SETTINGS)
    except InvalidInput as error:
        assert len(str(error)) < 3000
    else:
        assert isinstance(parsed, JobInput)
        assert 1 <= len(parsed.text) <= 10_000

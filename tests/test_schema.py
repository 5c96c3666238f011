"""What a job may say, and what users read when it says something else."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.errors import InvalidInput
from worker.schema import MAX_REFERENCE_BYTES, JobInput, decode_reference, parse_job
from worker.settings import GenerationDefaults, GenerationLimits, GenerationSettings

SETTINGS = GenerationSettings()
RECORDING = base64.b64encode(b"a recording").decode()
CLONE = {"reference_audio": RECORDING, "reference_text": "[S1] What is said."}
URL = "https://voices.example/deep.wav?signature=x%2B"
NAMED = {"reference_audio_url": URL, "reference_text": "[S1] What is said."}


def job(settings: GenerationSettings = SETTINGS, /, **fields: Any) -> JobInput:
    return parse_job({"text": "Hello.", **fields}, settings)


def refusal(settings: GenerationSettings = SETTINGS, /, **fields: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        job(settings, **fields)
    return str(caught.value)


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


# Recordings


def test_a_recording_is_decoded_as_it_was_sent() -> None:
    data = bytes(range(256))
    parsed = job(
        reference_audio=base64.b64encode(data).decode(), reference_text="[S1] What is said."
    )
    assert parsed.reference_bytes == data


def test_the_prefix_of_a_data_address_is_allowed() -> None:
    assert decode_reference(f"data:audio/wav;base64,{RECORDING}") == b"a recording"


def test_base64_may_be_broken_into_lines() -> None:
    assert decode_reference(base64.encodebytes(b"a recording" * 20).decode()) == b"a recording" * 20


@pytest.mark.parametrize(
    "encoded", ["not base64!", "abc", "=", "w\u00e9ird", "\ud800", RECORDING + "%", "data:,#"]
)
def test_garbage_is_said_to_be_no_base64(encoded: str) -> None:
    message = refusal(reference_audio=encoded, reference_text="[S1] What is said.")
    assert "reference_audio is not base64" in message


@pytest.mark.parametrize("encoded", ["data:audio/wav;base64,", "data:", "  \n"])
def test_a_recording_of_no_bytes_is_said_to_be_empty(encoded: str) -> None:
    message = refusal(reference_audio=encoded, reference_text="[S1] What is said.")
    assert "reference_audio is empty" in message


def test_a_recording_of_just_the_limit_is_taken_however_its_lines_are_broken() -> None:
    encoded = base64.b64encode(bytes(MAX_REFERENCE_BYTES)).decode()
    lines = "\r\n".join((encoded[:1_000_000], encoded[1_000_000:]))
    assert len(decode_reference(lines + "\n" * 1000)) == MAX_REFERENCE_BYTES


def test_a_recording_of_one_byte_more_is_refused_with_its_size() -> None:
    encoded = base64.b64encode(bytes(MAX_REFERENCE_BYTES + 1)).decode()
    with pytest.raises(InvalidInput, match=r"reference_audio has 20000001 bytes.*20 MB"):
        decode_reference(encoded)


def test_a_recording_of_the_wrong_type_is_refused() -> None:
    message = refusal(reference_audio=[1, 2], reference_text="[S1] What is said.")
    assert "reference_audio: [1, 2] is not allowed; it must be text" in message


# Recordings that lie elsewhere


def test_a_recording_may_be_named_by_its_address_which_is_kept_as_it_was_given() -> None:
    parsed = job(**NAMED)
    assert (parsed.reference_audio_url, parsed.reference_audio) == (URL, None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://voices.example/deep.wav", "is no https address; it must be an https:// address"),
        ("ftp://voices.example/deep.wav", "is no https address"),
        ("file:///etc/passwd", "is no https address"),
        ("data:audio/wav;base64,UklGRg==", "is no https address"),
        ("voices.example/deep.wav", "is no https address"),
        ("https:deep.wav", "is no https address"),
        ("https:///deep.wav", "is no https address"),
        ("https://", "is no https address"),
        (" https://voices.example/", "is no https address"),
        ("https://voices.example:port/", "is no address"),
        ("https://voices.example/\n", "is no address"),
        ("https://voices.example/\ud800", "is no address"),
        ("https://me:secret@voices.example/", "holds a user name or a password"),
        ("https://me@voices.example/", "holds a user name or a password"),
        ("https://voices.example\\@10.0.0.1/", "holds a user name or a password"),
        ("https://voices.example/" + "a" * 4096, "has 4119 characters; at most 4096"),
        (5, "5 is not allowed; it must be text"),
    ],
)
def test_an_address_that_cannot_be_fetched_is_refused_and_not_repeated(
    url: Any, words: str
) -> None:
    message = refusal(reference_audio_url=url, reference_text="[S1] What is said.")
    assert message.startswith("invalid_input: reference_audio_url")
    assert words in message
    assert "secret" not in message


def test_the_longest_address_is_taken() -> None:
    url = "https://voices.example/".ljust(4096, "a")
    assert job(**{**NAMED, "reference_audio_url": url}).reference_audio_url == url


def test_where_the_settings_say_so_no_recording_is_fetched() -> None:
    settings = GenerationSettings(limits=GenerationLimits(remote_references=False))
    assert job(settings, **CLONE).voice_mode == "clone"
    message = refusal(settings, **NAMED)
    assert "reference_audio_url is turned off on this worker" in message
    assert "generation.limits.remote_references" in message
    assert "as reference_audio" in message


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

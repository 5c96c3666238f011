"""Recordings in a job: sent along, or named by an address."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.schema.jobs import CLONE, NAMED, RECORDING, URL, job, refusal
from worker.errors import InvalidInput
from worker.schema import MAX_REFERENCE_BYTES, decode_reference
from worker.settings import GenerationLimits, GenerationSettings

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

"""OpenAI's speech API on a queue: what of it is taken, and what is refused in which words."""

from __future__ import annotations

from typing import Any

import pytest

from worker import openai
from worker.errors import InvalidInput, WorkerError
from worker.schema import parse_job
from worker.serverless.answers import failure
from worker.settings import GenerationSettings

VOICES = ["narrator_deep", "narrator_warm"]


def job_of(**request: Any) -> dict[str, Any]:
    given = {"openai_route": openai.SPEECH, "openai_input": request}
    return openai.speech_input(given, "dia-1.6b", lambda: VOICES)


def test_a_request_becomes_a_job_that_our_own_checks_take() -> None:
    job = job_of(model="dia", input="Hello.", voice="narrator_warm", response_format="flac")
    assert job == {"text": "Hello.", "voice_id": "narrator_warm", "output_format": "flac"}
    assert parse_job(job, GenerationSettings()).voice_mode == "voice_library"


def test_without_a_voice_and_a_format_there_are_dias_own_voices_as_mp3() -> None:
    assert job_of(input="Hello.") == {"text": "Hello.", "output_format": "mp3"}


def test_a_voice_may_come_as_an_object_with_its_id() -> None:
    assert job_of(input="Hello.", voice={"id": "narrator_deep"})["voice_id"] == "narrator_deep"


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_every_format_of_openai_is_there(format: str) -> None:
    assert job_of(input="Hello.", response_format=format)["output_format"] == format


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "input: null is not allowed"),
        ({"input": ["a"]}, "input: ['a'] is not allowed"),
        ({"input": "a", "model": "tts-1"}, "model: 'tts-1' is not here; valid are dia-1.6b, dia"),
        ({"input": "a", "voice": "alloy"}, "valid are narrator_deep, narrator_warm"),
        ({"input": "a", "voice": 7}, "voice: 7 is not in the library"),
        ({"input": "a", "response_format": "ogg"}, "'ogg' is not allowed; valid are wav, flac"),
        ({"input": "a", "speed": 2}, "speed: 2 is not possible; valid is 1.0"),
        ({"input": "a", "speed": True}, "speed: true is not possible"),
        ({"input": "a", "stream_format": "sse"}, "stream_format: 'sse' is not possible"),
        ({"input": "a", "instructions": 7}, "instructions: 7 is not allowed"),
        ({"input": "a", "respons_format": "wav"}, "did you mean response_format?"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words_that_help(
    request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(WorkerError) as caught:
        job_of(**request_)
    assert words in caught.value.message


@pytest.mark.parametrize("given", [None, "Hello.", []])
def test_a_request_that_is_no_object_is_refused(given: Any) -> None:
    with pytest.raises(InvalidInput, match="openai_input is"):
        openai.speech_input(
            {"openai_route": openai.SPEECH, "openai_input": given}, "dia", lambda: VOICES
        )


@pytest.mark.parametrize("route", ["/v1/chat/completions", None, ["/v1/models"]])
def test_another_route_is_refused_with_those_that_are_there(route: Any) -> None:
    with pytest.raises(InvalidInput, match="valid are /v1/audio/speech, /v1/models"):
        openai.route_of({"openai_route": route})


def test_instructions_are_not_followed_and_the_answer_says_so() -> None:
    given = {"openai_route": openai.SPEECH, "openai_input": {"instructions": "Whisper."}}
    answer = openai.speech_answer({"audio": "AAAA", "format": "mp3", "warnings": ["w"]}, given)
    assert answer["warnings"] == ["w", openai.IGNORED_INSTRUCTIONS]
    assert answer["content_type"] == "audio/mpeg"


def test_an_error_stays_text_and_has_openais_object_beside_it() -> None:
    told = openai.with_openai_error(failure(InvalidInput("text is empty")))
    assert told["error"] == "invalid_input: text is empty"
    assert told["openai_error"] == {
        "message": "text is empty",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_input",
    }
    assert openai.with_openai_error(failure(ValueError()))["openai_error"]["type"] == "server_error"

"""OpenAI's speech API, as RunPod's queue passes it on.

RunPod makes a job of a request to `/openai/v1/…`: `{"openai_route": "/v1/audio/speech",
"openai_input": {…}}`. Here that becomes the input of a job of ours, and our answer becomes theirs
as far as a queue allows: the platform answers in JSON, so the audio is base64 in it.

Pure: knows the two APIs, and asks nobody.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from worker.audio.encode import FORMATS
from worker.errors import InvalidInput, UnknownVoice
from worker.limits import shown

SPEECH, MODELS = "/v1/audio/speech", "/v1/models"
ROUTES = (SPEECH, MODELS)
ALIAS = "dia"  # of whatever model is loaded
DEFAULT_FORMAT = "mp3"  # OpenAI's own
OURS = "dia-worker"

FIELDS = (
    "model",
    "input",
    "voice",
    "response_format",
    "speed",
    "instructions",
    "stream_format",
)
IGNORED_INSTRUCTIONS = "instructions are not followed: the model knows only its text"


class InvalidModel(InvalidInput):
    """`model` is none that this worker has."""


def is_openai(given: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether a job's input came by way of OpenAI's routes."""
    return isinstance(given, Mapping) and "openai_route" in given


def route_of(given: Mapping[str, Any]) -> str:
    """The route that was asked for.

    Raises:
        InvalidInput: if there is none such.
    """
    route = given["openai_route"]
    if route not in ROUTES:
        raise InvalidInput(
            f"openai_route: {shown(route)}: no such route; {_named('valid', ROUTES)}"
        )
    return str(route)


def speech_input(
    given: Mapping[str, Any], model: str, voices: Callable[[], Sequence[str]]
) -> dict[str, Any]:
    """A job's input for a request to `SPEECH`.

    Args:
        given: the job's input, with `openai_input`.
        model: the name of the one that is loaded.
        voices: lists the ids of the library.

    Raises:
        InvalidInput: naming the field, what was given, and what is valid.
        UnknownVoice: if the library has no such voice.
    """
    request = given.get("openai_input")
    if not isinstance(request, Mapping):
        raise InvalidInput(f"openai_input is {shown(request)}; it must be an object with input")
    _check_fields(request)
    _check_model(request.get("model"), model)
    _check_unsupported(request)
    fields = {
        "text": _text(request.get("input")),
        "voice_id": _voice(request.get("voice"), voices),
        "output_format": _format(request.get("response_format")),
    }
    return {name: value for name, value in fields.items() if value is not None}


def speech_answer(answer: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What `SPEECH` answers: our own answer, what it is, and what was left unheeded."""
    warnings = list(answer.get("warnings", ()))
    if given["openai_input"].get("instructions"):
        warnings.append(IGNORED_INSTRUCTIONS)
    kind = FORMATS[answer["format"]].mime_type
    return {"object": "audio.speech", "content_type": kind, **answer, "warnings": warnings}


def models_answer(model: str) -> dict[str, Any]:
    """What `MODELS` answers."""
    names = dict.fromkeys((model, ALIAS))
    models = [{"id": name, "object": "model", "created": 0, "owned_by": OURS} for name in names]
    return {"object": "list", "data": models}


def with_openai_error(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A failure with OpenAI's error object beside ours, which must stay text for RunPod."""
    code = answer["error_code"]
    theirs = code.startswith(("invalid_", "unknown_"))
    _, _, message = answer["error"].partition(": ")
    error = {
        "message": message or answer["error"],
        "type": "invalid_request_error" if theirs else "server_error",
        "param": None,
        "code": code,
    }
    return {**answer, "openai_error": error}


def _check_fields(request: Mapping[str, Any]) -> None:
    for name in request:
        if name not in FIELDS:
            close = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else _named("the fields are", FIELDS)
            raise InvalidInput(f"{shown(name)}: no such field; {hint}")


def _check_model(asked: Any, loaded: str) -> None:
    if asked not in (None, loaded, ALIAS):
        raise InvalidModel(
            f"model: {shown(asked)} is not here; {_named('valid', dict.fromkeys((loaded, ALIAS)))}"
        )


def _check_unsupported(request: Mapping[str, Any]) -> None:
    speed = request.get("speed")
    if speed is not None and (isinstance(speed, bool) or speed != 1):
        raise InvalidInput(f"speed: {shown(speed)} is not possible; valid is 1.0")
    if request.get("stream_format") not in (None, "audio"):
        given = shown(request["stream_format"])
        raise InvalidInput(
            f"stream_format: {given} is not possible on a queue; valid is audio, which comes as "
            "one answer"
        )
    instructions = request.get("instructions")
    if not isinstance(instructions, str | None):
        raise InvalidInput(f"instructions: {shown(instructions)} is not allowed; it must be text")


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text:
        raise InvalidInput(f"input: {shown(text)} is not allowed; it must be text to speak")
    return text


def _voice(voice: Any, voices: Callable[[], Sequence[str]]) -> str | None:
    """A voice of the library, by its id, or as OpenAI's `{"id": …}`; without one, Dia's own."""
    if isinstance(voice, Mapping):
        voice = voice.get("id")
    if voice is None:
        return None
    known = voices()
    if voice not in known:
        raise UnknownVoice(f"voice: {shown(voice)} is not in the library; {_named('valid', known)}")
    return str(voice)


def _format(format: Any) -> str:
    if format is None:
        return DEFAULT_FORMAT
    if format not in FORMATS:
        raise InvalidInput(
            f"response_format: {shown(format)} is not allowed; {_named('valid', FORMATS)}"
        )
    return str(format)


def _named(what: str, names: Any) -> str:
    listed = ", ".join(names) or "none"
    return f"{what} {listed}" if what.endswith("are") else f"{what} are {listed}"

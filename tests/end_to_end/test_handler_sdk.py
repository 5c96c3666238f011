"""The handler as RunPod's SDK runs it, in this process."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from runpod.serverless.modules.rp_handler import is_generator
from runpod.serverless.modules.rp_job import run_job

import handler
from worker.errors import EngineBroken, EngineError, OutOfMemory, ResultTooLarge
from worker.schema import parse_job
from worker.serverless.flight import Flight
from worker.service import Service
from worker.settings import GenerationSettings, Settings

ROOT = Path(handler.__file__).parent
TEXT = "[S1] Hello there. [S2] Hello to you."

Job = dict[str, Any]
Run = Callable[..., Job]


@pytest.fixture(scope="module")
def sdk(service: Service, tiny_settings: Settings) -> Run:
    """Runs one `input` through the SDK; the result is what it would post, as strict JSON."""
    handle = handler.make_handler(service, tiny_settings)

    def run(input: Any, **job: Any) -> Job:
        result = asyncio.run(run_job(handle, {"id": "job-1", "input": input, **job}))
        posted: Job = json.loads(json.dumps(result, allow_nan=False))
        return posted

    return run


def check_refusal(result: Job, code: str, *words: str, retryable: bool = False) -> None:
    """The shape that RunPod reports as FAILED, and the words that help."""
    assert isinstance(result["error"], str)
    assert result["output"] == {"error_code": code, "retryable": retryable}
    assert result["error"].startswith(f"{code}: ")
    for word in words:
        assert word in result["error"]
    assert "\n" not in result["error"]
    check_nothing_private(json.dumps(result))


def check_nothing_private(text: str) -> None:
    assert "Traceback" not in text
    assert ".py" not in text
    assert str(ROOT) not in text
    assert socket.gethostname() not in text


def test_the_handler_is_a_coroutine_function_and_no_generator(
    service: Service, tiny_settings: Settings
) -> None:
    handle = handler.make_handler(service, tiny_settings)
    assert inspect.iscoroutinefunction(handle)
    assert not is_generator(handle)


def test_a_job_is_answered_with_audio_and_no_error(sdk: Run) -> None:
    result = sdk({"text": TEXT, "max_tokens": 20})
    assert set(result) == {"output"}
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(result["output"]["audio"])))
    assert len(samples) == result["output"]["audio_length"] > 0


def test_a_job_without_an_id_is_done_as_well(service: Service, tiny_settings: Settings) -> None:
    handle = handler.make_handler(service, tiny_settings)
    result = asyncio.run(handle({"input": {"text": TEXT, "max_tokens": 5}}))
    assert "error" not in result


def test_one_handler_does_several_jobs_at_once(service: Service, tiny_settings: Settings) -> None:
    handle = handler.make_handler(service, tiny_settings)

    async def together() -> list[Job]:
        inputs: list[Job] = [{"text": TEXT, "max_tokens": 10}, {"text": ""}, {"text": "Go on."}]
        inputs[2]["max_tokens"] = 10
        jobs = [{"id": f"job-{at}", "input": input} for at, input in enumerate(inputs)]
        return list(await asyncio.gather(*(run_job(handle, job) for job in jobs)))

    assert ["error" in result for result in asyncio.run(together())] == [False, True, False]


def audio(seconds: float, rate: int = 16_000) -> str:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)
    soundfile.write(file, wave.astype(np.float32), rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def cloned(reference: str, transcript: str = "[S1] The boats wait for the wind.") -> Job:
    return {"text": TEXT, "reference_audio": reference, "reference_text": transcript}


NOT_AUDIO = base64.b64encode(b"this is a letter and no recording, " * 50).decode()
INVALID: dict[str, tuple[Any, tuple[str, ...]]] = {
    "no input": (None, ("input is null", "object with the field text")),
    "input is text": ("Hello.", ("input is 'Hello.'", "object with the field text")),
    "no text": ({}, ("text is missing",)),
    "empty text": ({"text": ""}, ("text is empty", "1 to 10000 characters")),
    "text of spaces": ({"text": " \n "}, ("text is empty", "something to say")),
    "text of tags": ({"text": "[S1] [S2]"}, ("text is empty", "something to say")),
    "text too long": ({"text": "a" * 10_001}, ("10001 characters", "1 to 10000")),
    "third speaker": ({"text": "[S3] Hello."}, ("[S3]", "valid tags are [S1] and [S2]")),
    "unknown field": ({"text": TEXT, "chunksize": 9}, ("'chunksize'", "did you mean chunk_size?")),
    "wrong type": ({"text": TEXT, "seed": "42"}, ("seed: '42'", "a whole number")),
    "T < 0": ({"text": TEXT, "temperature": -0.5}, ("temperature: -0.5", "from 0 to 2")),
    "top_p > 1": ({"text": TEXT, "top_p": 1.5}, ("top_p: 1.5", "above 0, at most 1")),
    "unknown format": ({"text": TEXT, "output_format": "ogg"}, ("'ogg'", "wav, flac, mp3, opus")),
    "clone without transcript": (
        {"text": TEXT, "reference_audio": "AAAA"},
        ("reference_text is missing", "a recording"),
    ),
    "reference no base64": (cloned("%%%"), ("reference_audio is not base64",)),
    "id leads elsewhere": (
        {"text": TEXT, "voice_id": "../../etc/passwd"},
        ("voice_id is '../../etc/passwd'", "valid are 1 to 64 of the characters"),
    ),
    "voice and clone": (
        {**cloned("AAAA"), "voice_id": "narrator_warm"},
        ("voice_id and reference_audio are both given",),
    ),
    "nested disagrees": (
        {"text": TEXT, "seed": 1, "generation_params": {"seed": 2}},
        ("seed is given twice: 1, and 2 in generation_params", "give it once"),
    ),
    "must not be cut": (
        {"text": "Hello there. " * 100, "enable_chunking": False},
        ("enable_chunking is false", "room for 3057"),
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_bad_input_is_refused_in_words_that_help(sdk: Run, name: str) -> None:
    given, words = INVALID[name]
    check_refusal(sdk(given), "invalid_input", *words)


def test_an_unknown_voice_is_refused_with_the_closest_names(sdk: Run) -> None:
    result = sdk({"text": TEXT, "voice_id": "narator_worm"})
    check_refusal(result, "unknown_voice", "'narator_worm'", "close are narrator_warm")


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (NOT_AUDIO, ("is not audio that can be read", "wav, flac, mp3")),
        (audio(0), ("holds no audio", "0 samples")),
        (audio(0.4), ("too short", "0.40 s", "1 to 20 s")),
        (audio(40), ("too long", "40.00 s", "1 to 20 s")),
    ],
    ids=["no audio", "no samples", "0.4 s", "40 s"],
)
def test_a_reference_that_cannot_serve_is_refused_with_what_was_found(
    sdk: Run, reference: str, words: tuple[str, ...]
) -> None:
    check_refusal(sdk(cloned(reference)), "invalid_reference", *words)


def test_a_transcript_with_an_unknown_speaker_is_refused(sdk: Run) -> None:
    result = sdk(cloned(audio(3), "[S3] The boats wait."))
    check_refusal(result, "invalid_reference", "[S3]", "valid tags are [S1] and [S2]")


def test_a_bug_of_ours_reaches_the_log_whole_and_the_client_in_one_line(
    sdk: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_arguments: Any, **_others: Any) -> Job:
        raise RuntimeError(f"{socket.gethostname()} has no {ROOT / 'secret.py'}")

    monkeypatch.setattr(Service, "run", broken)
    result = sdk({"text": TEXT})
    check_refusal(result, "internal_error", "its log has the cause", retryable=True)
    assert any(record.exc_info for record in caplog.records)
    assert "secret" in caplog.text


def test_a_cancelled_job_is_not_answered_as_a_failure(
    service: Service, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = handler.make_handler(service, tiny_settings)

    async def endless(*_arguments: Any, **_others: Any) -> Job:
        await asyncio.Event().wait()
        return {}

    async def cancelled() -> None:
        task = asyncio.ensure_future(handle({"id": "job-1", "input": {"text": TEXT}}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(Service, "run", endless)
    asyncio.run(cancelled())


def test_the_job_for_trying_the_worker_is_a_valid_one() -> None:
    job = json.loads((ROOT / "test_input.json").read_text())
    assert parse_job(job["input"], GenerationSettings()).seed == 42


@pytest.mark.parametrize(
    "error", [OutOfMemory("no memory left"), EngineBroken("the device failed")], ids=["oom", "lost"]
)
def test_a_worn_out_worker_fails_the_job_and_asks_to_be_replaced(
    service: Service, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, error: EngineError
) -> None:
    async def worn(*_arguments: Any, **_others: Any) -> Job:
        raise error

    monkeypatch.setattr(Service, "run", worn)
    handle = handler.make_handler(service, tiny_settings)
    answer = asyncio.run(handle({"id": "job-1", "input": {"text": TEXT}}))
    assert answer["refresh_worker"] is True
    assert answer["error"] == str(error)
    posted = asyncio.run(run_job(handle, {"id": "job-1", "input": {"text": TEXT}}))
    assert posted["stopPod"] is True
    assert posted["error"] == str(error)


@pytest.mark.parametrize(
    "value", [float("nan"), b"audio", "\ud83d", {1, 2}], ids=["nan", "bytes", "surrogate", "set"]
)
def test_what_cannot_be_posted_never_leaves(
    sdk: Run, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    async def odd(*_arguments: Any, **_others: Any) -> Job:
        return {"audio": value}

    monkeypatch.setattr(Service, "run", odd)
    check_refusal(sdk({"text": TEXT}), "internal_error", "written as JSON", retryable=True)


def test_a_result_that_is_too_large_is_an_error_and_not_an_empty_success(
    sdk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def large(*_arguments: Any, **_others: Any) -> Job:
        raise ResultTooLarge("the answer has 30.0 MB")

    monkeypatch.setattr(Service, "run", large)
    check_refusal(sdk({"text": TEXT}), "result_too_large", "30.0 MB")


def test_a_job_that_takes_longer_than_it_may_is_ended_and_may_be_asked_again(
    service: Service, tiny_settings: Settings
) -> None:
    limits = tiny_settings.generation.limits.model_copy(update={"timeout_s": 0.3})
    generation = tiny_settings.generation.model_copy(update={"limits": limits})
    settings = tiny_settings.model_copy(update={"generation": generation})
    handle = handler.make_handler(service, settings)
    result = asyncio.run(run_job(handle, {"id": "job-1", "input": {"text": TEXT * 9}}))
    check_refusal(result, "timeout", "within the time", retryable=True)


def test_a_jobs_own_bucket_reaches_the_service(
    service: Service, tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told(*_arguments: Any, **others: Any) -> Job:
        return {"seen": others["s3_config"]}

    monkeypatch.setattr(Service, "run", told)
    handle = handler.make_handler(service, tiny_settings)
    job = {"id": "job-1", "input": {"text": TEXT}, "s3Config": {"bucketName": "speech"}}
    assert asyncio.run(handle(job)) == {"seen": {"bucketName": "speech"}}


def test_no_more_jobs_are_taken_than_the_engine_has_slots(
    service: Service, tiny_settings: Settings
) -> None:
    def at_once(requests: int) -> int:
        limits = tiny_settings.generation.limits.model_copy(
            update={"concurrent_requests": requests}
        )
        generation = tiny_settings.generation.model_copy(update={"limits": limits})
        settings = tiny_settings.model_copy(update={"generation": generation})
        config = handler.make_config(service, settings, Flight())
        return int(config["concurrency_modifier"](1))

    assert at_once(2) == 2
    assert at_once(1000) == service.slots

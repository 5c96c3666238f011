"""Whole jobs whose results are large: what comes back, and that nothing is generated twice."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.delivery.conftest import S3
from tests.delivery.fakes import MemoryStore, bucket_at
from worker.delivery import FittingDelivery
from worker.errors import InvalidInput, ResultTooLarge, UploadFailed
from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings

RATE = 44_100
THREE_MINUTES = [(0.5 * np.sin(np.arange(180 * RATE) * 0.05)).astype(np.float32)]

Answer = dict[str, Any]
Speak = Callable[..., Answer]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry a generation; each gives three minutes of a tone."""
    done: list[str] = []

    async def decode(*_: Any) -> list[np.ndarray[Any, Any]]:
        done.append("once")
        return THREE_MINUTES

    monkeypatch.setattr(Service, "_decode_all", decode)
    # The text is never spoken: what would be told of its chunks is of no interest here.
    report = Service._report

    def reported(service: Service, speech: Any, *rest: Any) -> Any:
        speech.tasks.clear()
        return report(service, speech, *rest)

    monkeypatch.setattr(Service, "_report", reported)
    return done


@pytest.fixture
def speak(service: Service, generated: list[str]) -> Speak:
    """Does one job, with a delivery of its own, and posts the answer as strict JSON."""

    def run(
        delivery: FittingDelivery | None = None,
        job_id: str = "job-1",
        s3_config: Any = None,
        **fields: Any,
    ) -> Answer:
        one = Service(
            service._engine, service._codec, service.voices, delivery or FittingDelivery(),
            service.model,
        )  # fmt: skip
        job = parse_job({"text": "[S1] Hello.", "max_tokens": 5, **fields}, GenerationSettings())
        answer = asyncio.run(one.run(job, job_id, s3_config=s3_config))
        posted: Answer = json.loads(json.dumps(answer, allow_nan=False))
        return posted

    return run


def wave_of(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(soundfile.read(io.BytesIO(data), dtype="int16")[0])


def test_three_minutes_of_wav_by_run_are_refused_in_words_that_help(
    speak: Speak, generated: list[str]
) -> None:
    with pytest.raises(ResultTooLarge) as caught:
        speak(output="base64", output_format="wav")
    assert caught.value.message == (
        "with 180 s of wav in base64 the answer has 21.2 MB, and an answer to /run has room for "
        "9.0 MB; ask for output s3 (with an s3Config, or on a worker with a bucket), a smaller "
        "output_format (flac, mp3, opus) or a shorter text"
    )
    assert generated == ["once"]


def test_without_a_named_format_they_come_as_flac_that_holds_the_same_samples(
    speak: Speak, generated: list[str]
) -> None:
    answer = speak(job_id="sync-1-e1")
    assert (answer["format"], answer["sample_rate"]) == ("flac", RATE)
    assert answer["audio_length"] == 180 * RATE
    assert answer["duration"] == 180
    expected = np.rint(THREE_MINUTES[0] * np.float32(32768))
    assert np.array_equal(wave_of(base64.b64decode(answer["audio"])), expected)
    assert any("the audio is flac: as wav" in warning for warning in answer["warnings"])
    assert generated == ["once"]


def test_a_format_that_a_job_names_is_the_one_it_gets_or_none(speak: Speak) -> None:
    for fields in ({"output_format": "wav"}, {"generation_params": {"output_format": "wav"}}):
        with pytest.raises(ResultTooLarge):
            speak(**fields)


def test_with_a_bucket_they_are_stored_whole_and_can_be_fetched(speak: Speak, s3: S3) -> None:
    answer = speak(FittingDelivery(s3.bucket()), job_id="long-1")
    assert "audio" not in answer
    assert (answer["format"], answer["audio_key"]) == ("wav", "long-1.wav")
    s3.check_keys(False)
    assert len(wave_of(httpx.get(answer["audio_url"]).content)) == 180 * RATE


def test_the_bucket_of_the_job_is_used_where_the_worker_has_none(speak: Speak, s3: S3) -> None:
    own = {
        "accessId": s3.key_id, "accessSecret": s3.secret,
        "bucketName": "speech", "endpointUrl": s3.url,
    }  # fmt: skip
    delivery = FittingDelivery(allow_private=True)
    assert speak(delivery, s3_config=own, output="s3")["audio_key"] == "job-1.wav"


def test_after_a_failed_upload_the_speech_is_delivered_and_not_generated_again(
    speak: Speak, generated: list[str]
) -> None:
    store = MemoryStore(UploadFailed("the upload to S3 failed: the store did not answer"))
    delivery = FittingDelivery(bucket_at("https://store.example"), connect=lambda _: store)
    answer = speak(delivery, output="s3")
    assert answer["format"] == "flac"
    assert len(wave_of(base64.b64decode(answer["audio"]))) == 180 * RATE
    assert generated == ["once"]


@pytest.mark.parametrize(
    ("s3_config", "words"),
    [(None, "there is no bucket"), ({"bucketName": "b"}, "accessId is missing")],
)
def test_a_job_whose_bucket_cannot_be_is_refused_before_anything_is_generated(
    speak: Speak, generated: list[str], s3_config: Any, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        speak(output="s3", s3_config=s3_config)
    assert generated == []


def test_an_answer_can_be_traced_to_its_job_its_model_and_its_seed(speak: Speak) -> None:
    answer = speak(job_id="sync-7-u1", voice_id="narrator_warm", seed=9, output_format="flac")
    assert answer["job_id"] == "sync-7-u1"
    assert (answer["voice_id"], answer["seed"]) == ("narrator_warm", 9)
    assert answer["model"]["fingerprint"]
    assert answer["warnings"] == []


@pytest.mark.parametrize("output", ["file", "", "S3", True, 1])
def test_an_output_that_there_is_not_is_refused_with_those_that_there_are(
    speak: Speak, output: Any
) -> None:
    with pytest.raises(InvalidInput, match=r"output: .* it must be auto, base64 or s3"):
        speak(output=output)

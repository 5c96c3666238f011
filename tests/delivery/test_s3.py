"""Files in a bucket, by a real S3 API: what is there afterwards, and what is told if it is not."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.delivery.conftest import S3
from tests.delivery.fakes import (
    KEY_ID,
    SECRET,
    Behaviour,
    answers,
    breaks_off,
    breaks_off_its_answer,
    bucket_at,
    drips,
    parcel_of,
    refusal,
    server,
    stalls,
    tone,
)
from worker.delivery import Bucket, FittingDelivery
from worker.delivery.fitting import connect
from worker.delivery.s3 import Patience, S3Store
from worker.errors import UploadFailed, UploadRefused

AUDIO = tone(3)  # 265 kB: more than a socket takes at once
QUICK = Patience(connect_s=0.3, read_s=0.3, total_s=5, attempts=4, pause_s=0.01)


def answer_of(bucket: Bucket, job_id: str = "job-1") -> dict[str, Any]:
    delivery = FittingDelivery(bucket, connect=connect)
    parcel = parcel_of(AUDIO, job_id=job_id)
    return delivery.deliver(parcel, delivery.route("s3", None)).answer


# What is there afterwards


def test_the_address_in_the_answer_gives_the_audio_to_anyone(s3: S3) -> None:
    answer = answer_of(s3.bucket())
    assert "audio" not in answer
    assert "X-Amz-Expires=86400" in answer["audio_url"]
    assert s3.secret not in str(answer)
    s3.check_keys(False)
    fetched = httpx.get(answer["audio_url"])
    assert fetched.status_code == 200
    assert fetched.content == AUDIO.data
    assert fetched.headers["Content-Type"] == "audio/wav"


def test_a_file_tells_which_job_it_came_from_and_how_it_was_made(s3: S3) -> None:
    answer = answer_of(s3.bucket(), "job 5/ü")
    found = s3.stored(answer["audio_key"])
    assert found["ContentType"] == "audio/wav"
    assert found["Metadata"] == {
        "job-id": "job%205%2F%C3%BC",
        "sample-rate": "44100",
        "duration": "3.000",
        "seed": "42",
        "model-fingerprint": "f00d",
    }


@pytest.mark.parametrize("job_id", ["x" * 5000, "\ud800", "a\nb", ""])
def test_an_id_that_is_no_name_does_not_hinder_the_upload(s3: S3, job_id: str) -> None:
    answer = answer_of(s3.bucket(), job_id)
    assert s3.stored(answer["audio_key"])["Body"].read() == AUDIO.data


def test_a_job_that_is_done_again_replaces_its_file(s3: S3) -> None:
    store = S3Store(s3.bucket())
    for audio in (tone(1), tone(0.5)):
        store.put("again.wav", audio, {})
    assert s3.stored("again.wav")["Body"].read() == tone(0.5).data


def test_keys_begin_with_the_prefix_and_addresses_end_when_they_should(s3: S3) -> None:
    answer = answer_of(replace(s3.bucket(), prefix="speech/2026/", url_expiry_s=60), "job-9")
    assert answer["audio_key"] == "speech/2026/job-9.wav"
    assert "X-Amz-Expires=60" in answer["audio_url"]
    assert s3.stored("speech/2026/job-9.wav")["Body"].read() == AUDIO.data


def test_a_store_that_signs_no_addresses_gives_the_key_only(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "has_urls", False)
    answer = answer_of(s3.bucket())
    assert answer["audio_key"] == "job-1.wav"
    assert "audio_url" not in answer


def test_a_job_s_own_bucket_gets_the_file(s3: S3) -> None:
    own = {
        "accessId": s3.key_id, "accessSecret": s3.secret,
        "bucketName": "speech", "endpointUrl": s3.url,
    }  # fmt: skip
    delivery = FittingDelivery(allow_private=True)
    answer = delivery.deliver(parcel_of(AUDIO, job_id="own"), delivery.route("s3", own)).answer
    assert s3.stored(str(answer["audio_key"]))["Body"].read() == AUDIO.data


# What will never go well is tried once


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"key_id": "AKIAWRONG"}, "refuses the access keys"),
        ({"secret": SECRET}, "refuses the access keys"),
        ({"name": "nobodys"}, "there is no such bucket"),
    ],
)
def test_wrong_keys_and_a_missing_bucket_are_told_apart(
    s3: S3, changed: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UploadRefused, match=words) as caught:
        S3Store(s3.bucket(**changed), QUICK).put("a.wav", AUDIO, {})
    assert not caught.value.retryable
    assert "again" not in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", "refuses the access keys"),
        (403, "", "refuses the access keys"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (301, "PermanentRedirect", "in another region"),
        (400, "AuthorizationHeaderMalformed", "in another region"),
        (413, "EntityTooLarge", "status 413"),
    ],
)
def test_a_refusal_is_told_in_words_and_not_tried_again(status: int, code: str, words: str) -> None:
    body = refusal(code) if code else ""
    with server(answers(status, body)) as store:
        with pytest.raises(UploadRefused, match=words):
            S3Store(bucket_at(store.url), QUICK).put("a.wav", AUDIO, {})
        assert len(store.bodies) == 1


def test_a_web_server_that_accepts_anything_is_not_taken_for_a_store() -> None:
    with (
        server(answers(200, etag="")) as store,
        pytest.raises(UploadFailed, match="did not confirm it"),
    ):
        S3Store(bucket_at(store.url), QUICK).put("a.wav", AUDIO, {})


# What may go well the next time is tried again


@pytest.mark.parametrize(
    "trouble",
    [
        answers(503, refusal("SlowDown")),
        answers(500),
        answers(429, refusal("Throttling")),
        answers(400, refusal("RequestTimeout")),
        breaks_off,
        breaks_off_its_answer,
        stalls,
    ],
    ids=["503", "500", "429", "timeout", "breaks off", "breaks off its answer", "stalls"],
)
def test_a_store_that_is_in_trouble_twice_gets_the_whole_file_the_third_time(
    trouble: Behaviour,
) -> None:
    with server(trouble, trouble, answers(200)) as store:
        url = S3Store(bucket_at(store.url), QUICK).put("a.wav", AUDIO, {})
        assert url is not None
        assert store.bodies[-1] == AUDIO.data


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (answers(503, refusal("SlowDown")), "answered with status 503"),
        (stalls, "did not answer"),
        (breaks_off, "did not answer"),
    ],
    ids=["503", "stalls", "breaks off"],
)
def test_a_store_that_stays_in_trouble_is_given_up_after_four_attempts(
    trouble: Behaviour, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        server(trouble) as store,
        caplog.at_level(logging.INFO),
        pytest.raises(UploadFailed, match=words) as caught,
    ):
        S3Store(bucket_at(store.url), QUICK).put("a.wav", AUDIO, {})
    assert caught.value.retryable
    assert caught.value.code == "upload_failed"
    assert len([record for record in caplog.records if "again in" in record.message]) == 3


def test_a_store_that_is_not_there_is_given_up() -> None:
    with server(answers(200)) as store:
        url = store.url
    with pytest.raises(UploadFailed, match="did not answer") as caught:
        S3Store(bucket_at(url), QUICK).put("a.wav", AUDIO, {})
    assert caught.value.retryable


@pytest.mark.parametrize("trouble", [drips, stalls], ids=["drips", "stalls"])
def test_no_store_holds_a_job_up_for_longer_than_is_bearable(trouble: Behaviour) -> None:
    patience = Patience(connect_s=20, read_s=20, total_s=0.4)
    with server(trouble) as store:
        began = time.monotonic()
        with pytest.raises(UploadFailed, match=r"not done within 0\.4 s"):
            S3Store(bucket_at(store.url), patience).put("a.wav", AUDIO, {})
        assert time.monotonic() - began < 2


def test_the_pauses_between_attempts_grow() -> None:
    store = S3Store(bucket_at("http://127.0.0.1"), Patience())
    first, second, third, last = store._pauses()
    assert first is not None and second is not None and third is not None
    assert 0.37 < first < 0.63 < 0.75 <= second <= 1.25 < 1.5 <= third <= 2.5
    assert last is None


@pytest.mark.parametrize(
    "trouble",
    [answers(403, refusal("AccessDenied")), answers(503, refusal("SlowDown")), breaks_off, stalls],
    ids=["403", "503", "breaks off", "stalls"],
)
def test_a_user_learns_no_secret_host_or_path_and_the_log_has_the_cause(
    trouble: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    def hasty(bucket: Bucket) -> S3Store:
        return S3Store(bucket, replace(QUICK, attempts=1))

    with server(trouble) as store, caplog.at_level(logging.INFO):
        bucket = replace(bucket_at(store.url), prefix="inner/folder")
        delivery = FittingDelivery(bucket, connect=hasty)
        answer = delivery.deliver(parcel_of(AUDIO), delivery.route("s3", None)).answer
    (_, warning) = answer["warnings"]  # type: ignore[misc]
    told = f"{warning} {answer.keys()}"
    for private in (KEY_ID, SECRET, "127.0.0.1", "10.1.2.3", "/srv", "inner", "speech"):
        assert private not in told
    assert SECRET not in caplog.text
    assert re.search(r"\(\w+\(.*\)\)", caplog.text)  # the exception with its own words

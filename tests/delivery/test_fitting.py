"""What users get for audio that fits, and for audio that does not."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.delivery.fakes import MemoryStore, bucket_at, describe, file_of, parcel_of, tone
from worker.delivery import Answer, Bucket, Delivered, FittingDelivery, KeepingDelivery, Parcel
from worker.delivery.keys import file_name
from worker.delivery.room import RUN, RUNSYNC, base64_size, encoded_size, room_for
from worker.errors import EngineError, InvalidInput, ResultTooLarge, UploadFailed, UploadRefused
from worker.limits import Output

BUCKET = bucket_at("https://store.example")
FITS = 6_700_000  # bytes of a file that fits into an answer to /run
LARGE = FITS + 100_000
JOB_BUCKET = {
    "accessId": "A", "accessSecret": "S", "bucketName": "mine", "endpointUrl": "https://127.0.0.1",
}  # fmt: skip


def deliver(
    parcel: Parcel,
    output: Output = "auto",
    store: MemoryStore | None = None,
    s3_config: Mapping[str, str] | None = None,
) -> Delivered:
    def connect(bucket: Bucket) -> MemoryStore:
        assert store is not None
        return store

    bucket = None if store is None else BUCKET
    delivery = FittingDelivery(bucket, allow_private=True, connect=connect)
    return delivery.deliver(parcel, delivery.route(output, s3_config))


def audio_of(delivered: Delivered) -> bytes:
    return base64.b64decode(str(delivered.answer["audio"]))


def warnings_of(delivered: Delivered) -> list[str]:
    warnings = delivered.answer["warnings"]
    assert isinstance(warnings, list)
    assert warnings[0] == "first"  # what there was to know before
    return warnings[1:]


# What fits


@pytest.mark.parametrize("output", ["auto", "base64"])
def test_audio_that_fits_comes_in_the_answer_although_there_is_a_bucket(output: Output) -> None:
    store = MemoryStore()
    delivered = deliver(parcel_of(tone(1)), output, store)
    assert audio_of(delivered) == tone(1).data
    assert "audio_url" not in delivered.answer
    assert warnings_of(delivered) == []
    assert store.attempts == 0


def test_a_job_by_runsync_may_have_twice_as_much() -> None:
    audio = file_of(2 * FITS)
    assert audio_of(deliver(parcel_of(audio, job_id="sync-1-e1"), "base64")) == audio.data
    with pytest.raises(ResultTooLarge):
        deliver(parcel_of(audio, job_id="1-e1"), "base64")


@pytest.mark.parametrize("room", [RUN, RUNSYNC])
def test_a_tenth_of_what_the_platform_takes_is_left_free(room: Any) -> None:
    assert room.limit == {"/run": 10_000_000, "/runsync": 20_000_000}[room.name] * 0.9
    assert 19.5 / 20 > 0.9  # what has failed


def test_the_whole_answer_is_measured_and_not_its_audio_alone() -> None:
    text = "x" * 100_000

    def talkative(audio: Any, warnings: Any) -> Answer:
        return {**describe(audio, warnings), "text": text}

    audio = file_of((RUN.limit - 50_000) * 3 // 4)
    assert audio_of(deliver(parcel_of(audio), "base64")) == audio.data
    with pytest.raises(ResultTooLarge):
        deliver(parcel_of(audio, describe=talkative), "base64")


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False,
                                                                          allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)  # fmt: skip
def test_no_answer_is_larger_than_was_measured(answer: Any) -> None:
    posted = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert encoded_size(answer) >= len(posted)


@given(st.binary(max_size=50))
def test_the_size_in_base64_is_known_beforehand(data: bytes) -> None:
    assert base64_size(data) == len(base64.b64encode(data))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}, object()])
@pytest.mark.parametrize("output", ["base64", "s3"])
def test_what_json_does_not_know_never_leaves(value: Any, output: Output) -> None:
    def broken(audio: Any, warnings: Any) -> Answer:
        return {**describe(audio, warnings), "duration": value}

    with pytest.raises(EngineError, match="cannot be written as JSON") as caught:
        deliver(parcel_of(tone(0.1), describe=broken), output, MemoryStore())
    assert "nan" not in str(caught.value)


# What does not fit


def test_large_audio_is_stored_where_there_is_a_bucket() -> None:
    store = MemoryStore()
    delivered = deliver(parcel_of(file_of(LARGE), {"flac": 10}), "auto", store)
    assert delivered.answer["audio_url"] == "memory:job-1.wav"
    assert delivered.answer["audio_key"] == "job-1.wav"
    assert "audio" not in delivered.answer
    assert store.files == {"job-1.wav": file_of(LARGE).data}
    assert delivered.answer["format"] == "wav"
    assert warnings_of(delivered) == []


@pytest.mark.parametrize(
    ("sizes", "format"),
    [
        ({"flac": FITS, "mp3": 1, "opus": 1}, "flac"),
        ({"flac": LARGE, "mp3": FITS, "opus": 1}, "mp3"),
        ({"flac": LARGE, "mp3": LARGE, "opus": FITS}, "opus"),
    ],
)
def test_without_a_bucket_large_audio_becomes_a_smaller_file_with_a_warning(
    sizes: dict[str, int], format: str
) -> None:
    delivered = deliver(parcel_of(file_of(LARGE), sizes))
    assert delivered.audio.format == delivered.answer["format"] == format
    assert len(audio_of(delivered)) == FITS
    (warning,) = warnings_of(delivered)
    assert warning.startswith(f"the audio is {format}: as wav the answer would have had 9.1 MB")
    assert "an answer to /run has room for 9.0 MB" in warning
    assert "output_format" in warning


def test_a_smaller_file_starts_from_the_format_that_is_the_worker_s_default() -> None:
    delivered = deliver(parcel_of(file_of(LARGE, "aac"), {"mp3": LARGE, "opus": 10}))
    assert delivered.audio.format == "opus"


@pytest.mark.parametrize(
    ("output", "free", "sizes"),
    [
        ("auto", False, {"flac": 1}),  # the job named its format
        ("base64", True, {"flac": 1}),  # the job asked for this and nothing else
        ("auto", True, {"flac": LARGE, "mp3": LARGE, "opus": LARGE}),
    ],
)
def test_what_fits_nowhere_is_answered_with_the_size_the_limit_and_the_ways_out(
    output: Output, free: bool, sizes: dict[str, int]
) -> None:
    with pytest.raises(ResultTooLarge) as caught:
        deliver(parcel_of(file_of(LARGE), sizes, free=free), output)
    error = caught.value
    assert (error.code, error.retryable) == ("result_too_large", False)
    for words in (
        "180 s of wav", "9.1 MB", "/run has room for 9.0 MB", "output s3", "s3Config",
        "smaller output_format (flac, mp3, opus)", "shorter text",
    ):  # fmt: skip
        assert words in error.message


# A bucket that was asked for


def test_a_job_that_asks_for_s3_gets_even_small_audio_there() -> None:
    delivered = deliver(parcel_of(tone(0.1)), "s3", MemoryStore())
    assert delivered.answer["audio_key"] == "job-1.wav"
    assert "audio" not in delivered.answer


def test_a_job_that_asks_for_s3_where_there_is_none_is_refused_before_anything_is_done() -> None:
    with pytest.raises(InvalidInput, match=r"there is no bucket.*s3Config") as caught:
        FittingDelivery().route("s3", None)
    assert not caught.value.retryable


def test_a_job_s_own_bucket_wins_over_the_worker_s() -> None:
    opened: list[Bucket] = []

    def connect(bucket: Bucket) -> MemoryStore:
        opened.append(bucket)
        return MemoryStore()

    delivery = FittingDelivery(BUCKET, allow_private=True, connect=connect)
    for s3_config in (JOB_BUCKET, None, None):
        delivery.deliver(parcel_of(tone(0.1)), delivery.route("s3", s3_config))
    # The worker's own is opened once, however many jobs use it.
    assert [bucket.name for bucket in opened] == ["mine", "speech"]


@pytest.mark.parametrize("output", ["auto", "base64", "s3"])
def test_a_bad_bucket_of_a_job_is_refused_even_where_it_would_not_be_used(output: Output) -> None:
    with pytest.raises(InvalidInput, match="s3Config"):
        FittingDelivery(BUCKET).route(output, {"bucket": "b"})


# A bucket that fails

DOWN = UploadFailed("the upload to S3 failed: the store did not answer")
SHUT = UploadRefused("the upload to S3 failed: there is no such bucket")


@pytest.mark.parametrize("failure", [DOWN, SHUT])
def test_after_a_failed_upload_the_audio_comes_in_the_answer_with_a_warning(
    failure: UploadFailed,
) -> None:
    delivered = deliver(parcel_of(tone(1)), "s3", MemoryStore(failure))
    assert audio_of(delivered) == tone(1).data
    assert warnings_of(delivered) == [f"{failure.message}; the audio is in the answer instead"]


def test_after_a_failed_upload_large_audio_is_made_smaller_with_both_warnings() -> None:
    delivered = deliver(parcel_of(file_of(LARGE), {"flac": FITS}), "auto", MemoryStore(DOWN))
    upload, format = warnings_of(delivered)
    assert upload.startswith("the upload to S3 failed")
    assert format.startswith("the audio is flac")


@pytest.mark.parametrize(
    ("failure", "code", "retryable"),
    [(DOWN, "upload_failed", True), (SHUT, "upload_refused", False)],
)
def test_after_a_failed_upload_of_audio_that_does_not_fit_the_error_says_both(
    failure: UploadFailed, code: str, retryable: bool
) -> None:
    with pytest.raises(UploadFailed) as caught:
        deliver(parcel_of(file_of(LARGE), free=False), "auto", MemoryStore(failure))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert caught.value.message.startswith(failure.message)
    assert "9.1 MB" in caught.value.message


def test_a_failed_upload_leaves_nothing_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    deliver(parcel_of(tone(0.1)), "s3", MemoryStore(DOWN))
    assert list(tmp_path.iterdir()) == []


# A copy, and the cold start


def test_what_is_kept_is_what_was_delivered(tmp_path: Path) -> None:
    keeping = KeepingDelivery(FittingDelivery(), tmp_path / "kept")
    route = keeping.route("auto", None)
    delivered = keeping.deliver(parcel_of(file_of(LARGE), {"flac": FITS}, job_id="a/b"), route)
    (copy,) = (tmp_path / "kept").iterdir()
    assert copy.name == file_name("a/b", "flac")
    assert copy.read_bytes() == audio_of(delivered)


def test_a_job_of_unknown_origin_has_the_smaller_room() -> None:
    assert [room_for(job_id).name for job_id in ("sync-1", "1-sync-", "", "test_input")] == [
        "/runsync", "/run", "/run", "/run",
    ]  # fmt: skip


def test_a_worker_does_not_wait_for_boto3_before_the_first_upload() -> None:
    program = (
        "import sys, tests.delivery.fakes as fakes; from worker.delivery import FittingDelivery\n"
        "delivery = FittingDelivery(fakes.bucket_at('https://store.example'))\n"
        "delivery.deliver(fakes.parcel_of(fakes.tone(0.1)), delivery.route('auto', None))\n"
        "sys.exit('boto3' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

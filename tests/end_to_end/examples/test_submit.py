"""What `submit.py` does when servers stumble, jobs fail or settings are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.examples.unreliable import KEY, Unreliable, call, fail, speak, speaker, tone
from tests.end_to_end.platform_queue import Job


def only_job(queue: Unreliable) -> Job:
    (job,) = queue.jobs.values()
    return job


def test_a_server_that_stumbles_costs_no_second_job(queue: Unreliable, tmp_path: Path) -> None:
    queue.wrong["run"].extend(["429"])
    queue.wrong["status"].extend(["500", "drop"])
    with speaker(queue):
        ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav")
    assert ended.status == 0, ended.told
    assert (tmp_path / "a.wav").read_bytes() == tone()
    assert len(queue.jobs) == 1
    assert "warning: A warning." in ended.told


@pytest.mark.parametrize("wrong", ["lose", "500", "garble"])
def test_a_job_whose_answer_is_lost_is_not_sent_again(
    queue: Unreliable, tmp_path: Path, wrong: str
) -> None:
    queue.wrong["run"].append(wrong)
    ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav")
    assert ended.status == 1
    assert "error: the job may have been accepted: the server " in ended.told
    assert queue.asked["run"] == 1
    assert len(queue.jobs) == (wrong == "lose")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("401", "access is refused (status 401)"),
        ("404", "the server knows no endpoint http"),
    ],
)
def test_a_request_that_is_wrong_is_told_at_once(
    queue: Unreliable, tmp_path: Path, status: str, words: str
) -> None:
    queue.wrong["run"].append(status)
    ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav")
    assert ended.status == 1
    assert f"error: {words}" in ended.told
    assert queue.asked == {"run": 1}


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT"])
def test_a_job_that_fails_is_one_line_and_no_file(
    queue: Unreliable, tmp_path: Path, status: str
) -> None:
    with speaker(queue, lambda job: fail(job, status)):
        ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav")
    assert ended.status == 1
    last = ended.told.splitlines()[-1]
    assert last == f"error: the job ended as {status}: out_of_memory: there is no room for this job"
    assert not (tmp_path / "a.wav").exists()
    assert queue.asked["cancel"] == 0


def test_a_job_that_takes_too_long_is_cancelled(queue: Unreliable, tmp_path: Path) -> None:
    ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav", "--timeout", 0.5)
    assert ended.status == 1
    assert "error: the job was not done within 0.5 s" in ended.told
    assert only_job(queue).status == "CANCELLED"
    assert only_job(queue).request["policy"] == {"executionTimeout": 5000}


def test_sound_in_a_bucket_is_fetched_and_the_key_stays_at_home(
    queue: Unreliable, tmp_path: Path
) -> None:
    queue.sounds["a.wav"] = tone(0.2)
    url = queue.base_url.replace("/v2", "/sounds/a.wav?signature=secret")

    def upload(job: Job) -> None:
        speak(job)
        job.output = {**job.output, "audio_url": url}
        del job.output["audio"]

    with speaker(queue, upload):
        ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav")
    assert ended.status == 0, ended.told
    assert (tmp_path / "a.wav").read_bytes() == tone(0.2)
    assert queue.strange_headers == []
    assert "signature" not in ended.told


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RUNPOD_API_KEY": ""}, "RUNPOD_ENDPOINT_ID and RUNPOD_API_KEY must be set"),
        ({"RUNPOD_API_KEY": f"{KEY}\nX: y"}, "RUNPOD_API_KEY has characters that no key has"),
        ({"RUNPOD_BASE_URL": "ftp://x"}, "RUNPOD_BASE_URL must begin with https://"),
    ],
    ids=["no key", "strange key", "strange server"],
)
def test_a_setting_that_is_wrong_is_named(
    queue: Unreliable, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "a.wav", **variables)
    assert ended.status == 1
    assert f"error: {words}" in ended.told


def test_nothing_is_asked_for_that_cannot_be_written(queue: Unreliable, tmp_path: Path) -> None:
    ended = call(queue, "submit.py", "Hello.", "-o", tmp_path / "nowhere" / "a.wav")
    assert ended.status == 1
    assert "error: there is no folder " in ended.told
    assert not queue.asked

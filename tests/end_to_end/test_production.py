"""What a client gets of a worker on RunPod: one process, one queue, all that happens to jobs."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import pytest
import soundfile

from tests.end_to_end.client import SENTENCE, SHORT, asked, check_nothing_private, done
from tests.end_to_end.conftest import StartWorker
from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.platform_queue import Job
from tests.end_to_end.process import WorkerProcess, slots_free_ms

CHUNKED = {"text": SENTENCE * 6, "max_tokens": 10}
ENDLESS = {"text": SENTENCE, "max_tokens": 3000}  # 15 s and more
MINUTE = {"text": SENTENCE * 14, "max_tokens": 430}
AT_ONCE = 3


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker) -> WorkerProcess:
    return start_worker(PRELOAD_VOICES="narrator_warm").wait_until_ready()


@pytest.fixture(autouse=True)
def no_faults(plane: ControlPlane, worker: WorkerProcess) -> None:
    plane.faults.clear()
    plane.fault_for = lambda *_: None


def running(plane: ControlPlane, worker: WorkerProcess, given: Any) -> Job:
    """A job that the worker is at work on."""
    job = plane.jobs[plane.submit(given)]
    worker.wait_until_speaking(job.id)
    return job


def final_posts(plane: ControlPlane, job_id: str) -> list[str]:
    """How the posts of a job's result were answered."""
    posts = plane.posts(job_id)
    return [post.answered for post in posts if post.body.get("status") != "IN_PROGRESS"]


# Results


def test_a_client_that_posts_a_job_gets_audio_that_plays(plane: ControlPlane) -> None:
    posted = asked(plane, "/run", {"input": SHORT})
    plane.wait_for(posted["id"])
    status = asked(plane, f"/status/{posted['id']}")
    assert status["status"] == "COMPLETED"
    assert status["executionTime"] > 0
    output = status["output"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(output["audio"])))
    assert (len(samples), rate) == (output["audio_length"], output["sample_rate"])


def test_a_client_that_waits_gets_the_audio_at_once(plane: ControlPlane) -> None:
    status = asked(plane, "/runsync", {"input": SHORT})
    assert status["status"] == "COMPLETED"
    assert status["output"]["audio"]


def test_jobs_run_side_by_side_and_never_more_than_allowed(plane: ControlPlane) -> None:
    plane.platform.paused = True
    time.sleep(0.1)
    ids = [plane.submit(SHORT) for _ in range(8)]
    plane.resume()
    jobs = plane.wait_for(*ids)
    assert {job.status for job in jobs} == {"COMPLETED"}
    at_once = [
        sum(each.taken <= job.taken < each.finished for each in jobs)  # type: ignore[operator]
        for job in jobs
    ]
    assert 1 < max(at_once) <= AT_ONCE


def test_a_job_that_the_platform_runs_twice_gives_the_same_audio(plane: ControlPlane) -> None:
    job = done(plane, SHORT)
    first = job.output["audio"]
    plane.again(job.id)
    plane.wait_for(job.id)
    assert (job.results, job.output["audio"]) == (2, first)


def test_half_a_surrogate_in_the_text_ends_in_an_answer(plane: ControlPlane) -> None:
    job = done(plane, {"text": "[S1] Hello \ud83d there.", "max_tokens": 5})
    assert job.status in ("COMPLETED", "FAILED")
    assert job.output


# Progress


def test_progress_comes_chunk_by_chunk_and_nothing_after_the_result(plane: ControlPlane) -> None:
    job = done(plane, CHUNKED)
    time.sleep(0.5)
    *updates, result = plane.posts(job.id)
    total = job.output["chunks_processed"]
    told = [post.body["output"]["chunks_processed"] for post in updates]
    assert total > 2
    assert told == list(range(1, total))
    assert {post.body["output"]["chunks_total"] for post in updates} == {total}
    assert "status" not in result.body
    assert job.status == "COMPLETED"


def test_a_platform_that_is_slow_to_take_progress_still_gets_the_result_last(
    plane: ControlPlane,
) -> None:
    def slow(kind: str, _job_id: str | None, body: Any) -> str | None:
        return "delay:0.7" if kind == "job-done" and "status" in body else None

    plane.fault_for = slow
    job = done(plane, CHUNKED)
    time.sleep(1)
    assert job.status == "COMPLETED"
    assert "status" not in plane.posts(job.id)[-1].body


def test_an_update_that_hangs_does_not_hold_up_the_result_for_long(plane: ControlPlane) -> None:
    def hanging(kind: str, _job_id: str | None, body: Any) -> str | None:
        return "delay:60" if kind == "job-done" and "status" in body else None

    plane.fault_for = hanging
    assert done(plane, CHUNKED).status == "COMPLETED"


# Errors


def test_a_refused_job_fails_with_words_and_a_code_and_nothing_private(
    plane: ControlPlane,
) -> None:
    job = done(plane, {"text": SENTENCE, "temperature": -1})
    assert job.status == "FAILED"
    assert job.error.startswith("invalid_input: temperature: -1 is not allowed")
    assert job.output == {"error_code": "invalid_input", "retryable": False}
    check_nothing_private(json.dumps(job.shown()))


@pytest.mark.parametrize("given", [None, "Hello.", [], {}, {"text": 7}])
def test_an_input_of_the_wrong_shape_fails_and_the_next_job_is_done(
    plane: ControlPlane, given: Any
) -> None:
    assert done(plane, given).status == "FAILED"
    assert done(plane, SHORT).status == "COMPLETED"


# Posts that fail


@pytest.mark.parametrize(
    "faults", [["500", "500"], ["drop"], ["503", "drop"]], ids=["500", "drop", "both"]
)
def test_a_result_that_is_not_taken_at_first_arrives(
    plane: ControlPlane, faults: list[str]
) -> None:
    plane.faults["job-done"].extend(faults)
    job = done(plane, SHORT)
    assert (job.status, job.results) == ("COMPLETED", 1)
    assert final_posts(plane, job.id) == [*faults, "200"]


def test_a_result_that_is_too_large_for_the_platform_becomes_an_error(plane: ControlPlane) -> None:
    plane.faults["job-done"].append("413")
    job = done(plane, SHORT)
    assert job.status == "FAILED"
    assert job.error.startswith("result_too_large: ")
    assert job.output == {"error_code": "result_too_large", "retryable": False}
    assert final_posts(plane, job.id) == ["413", "200"]


def test_a_result_that_is_refused_is_not_sent_again_and_the_next_job_is_done(
    plane: ControlPlane,
) -> None:
    plane.faults["job-done"].append("400")
    refused = plane.submit(SHORT)
    plane.wait_until(lambda: plane.posts(refused))
    assert done(plane, SHORT).status == "COMPLETED"
    assert final_posts(plane, refused) == ["400"]


def test_a_platform_in_trouble_is_not_asked_for_jobs_without_a_pause(plane: ControlPlane) -> None:
    faults = plane.faults["job-take"]
    faults.extend(["500", "400", "drop"])
    began = time.monotonic()
    plane.wait_until(lambda: not faults, 20)
    assert time.monotonic() - began > 1.5
    assert done(plane, SHORT).status == "COMPLETED"


# Cancellation


@pytest.mark.parametrize("given", [MINUTE, ENDLESS], ids=["a minute", "one long chunk"])
def test_a_cancelled_job_frees_its_slots_within_200_ms(
    plane: ControlPlane, worker: WorkerProcess, given: Any
) -> None:
    job = running(plane, worker, given)
    plane.cancel(job.id)
    assert plane.wait_until(lambda: slots_free_ms(worker, job.id), 20) < 200
    assert done(plane, SHORT).status == "COMPLETED"
    assert (job.status, job.results) == ("CANCELLED", 0)


def test_a_job_that_runs_out_of_the_platforms_time_frees_its_slots(
    plane: ControlPlane, worker: WorkerProcess
) -> None:
    job = done(plane, ENDLESS, policy={"executionTimeout": 3000})
    assert job.status == "TIMED_OUT"
    assert plane.wait_until(lambda: slots_free_ms(worker, job.id), 20) < 200


def test_cancelling_one_job_leaves_its_neighbours_alone(
    plane: ControlPlane, worker: WorkerProcess
) -> None:
    job = running(plane, worker, ENDLESS)
    neighbour = plane.submit({"text": SENTENCE, "max_tokens": 60})
    plane.cancel(job.id)
    assert plane.wait_for(neighbour)[0].status == "COMPLETED"


# OpenAI's routes


def openai(plane: ControlPlane, route: str, **request: Any) -> Job:
    return done(plane, {"openai_route": route, "openai_input": request})


def test_openais_speech_route_gives_audio_in_json(plane: ControlPlane) -> None:
    text = "Hi."
    job = openai(plane, "/v1/audio/speech", model="dia", input=text, voice="narrator_warm")
    assert job.status == "COMPLETED", job.error
    assert job.output["object"] == "audio.speech"
    assert job.output["content_type"] == "audio/mpeg"
    assert soundfile.info(io.BytesIO(base64.b64decode(job.output["audio"]))).format == "MP3"


def test_openais_list_of_models_names_the_one_that_is_loaded(plane: ControlPlane) -> None:
    job = openai(plane, "/v1/models")
    assert [model["id"] for model in job.output["data"]] == ["dia-tiny", "dia"]


def test_openais_errors_come_in_openais_shape_beside_ours(plane: ControlPlane) -> None:
    job = openai(plane, "/v1/audio/speech", model="dia", input="Hello.", voice="alloy")
    assert job.status == "FAILED"
    assert "narrator_deep, narrator_warm" in job.error
    assert job.output["openai_error"]["type"] == "invalid_request_error"
    assert job.output["openai_error"]["code"] == "unknown_voice"


# The log, and the end


def test_every_line_of_a_job_in_the_log_carries_its_id(
    plane: ControlPlane, worker: WorkerProcess
) -> None:
    before = len(worker.log.splitlines())
    job = done(plane, {"text": SENTENCE, "temperature": 9})
    lines = [line for line in worker.log.splitlines()[before:] if "temperature" in line]
    assert lines
    assert all(f"[{job.id}]" in line for line in lines)


def test_the_log_holds_no_audio_and_no_key(plane: ControlPlane, worker: WorkerProcess) -> None:
    job = done(plane, SHORT)
    assert job.output["audio"][:60] not in worker.log
    assert "key-that-nobody-may-see" not in worker.log


def test_an_idle_worker_hardly_uses_the_processor(
    plane: ControlPlane, worker: WorkerProcess
) -> None:
    before = worker.usage.cpu_times()
    time.sleep(3)
    after = worker.usage.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.15


def test_a_worker_that_is_taken_down_posts_what_it_runs_and_takes_nothing_more(
    plane: ControlPlane, worker: WorkerProcess
) -> None:
    assert plane.pings  # it has said all the time that it lives
    ids = [plane.submit({"text": SENTENCE, "max_tokens": 300}) for _ in range(2)]
    for job_id in ids:
        worker.wait_until_speaking(job_id)
    heartbeats = worker.usage.children()
    worker.terminate()
    plane.wait_until(lambda: "no more jobs are taken" in worker.log)
    late = plane.submit(SHORT)
    assert worker.wait() == 0
    assert {job.status for job in plane.wait_for(*ids)} == {"COMPLETED"}
    assert plane.jobs[late].status == "IN_QUEUE"
    assert not any(heartbeat.is_running() for heartbeat in heartbeats)

"""What a client gets of a worker that streams."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.end_to_end.client import SENTENCE, SHORT, asked, done
from tests.end_to_end.conftest import StartWorker
from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.process import WorkerProcess, slots_free_ms
from worker.delivery.room import RUN, Room
from worker.pieces import Piece
from worker.schema import JobResult, ModelInfo
from worker.serverless.streaming import Stream
from worker.take import MOST_FRAMES

CHUNKED = {"text": SENTENCE * 4, "max_tokens": 40}
LONG = {"text": SENTENCE * 4, "max_tokens": 900}

RESULT = JobResult(
    job_id="job-1",
    format="wav",
    sample_rate=44_100,
    audio_length=4 * 44_100,
    duration=4.0,
    generation_time=1.0,
    chunks_processed=1,
    chunks=[],
    seed=1,
    voice_id=None,
    model=ModelInfo(name="dia", generation="0626", dtype="float32", fingerprint="f"),
    warnings=[],
)


@pytest.fixture(scope="module")
def worker(start_worker: StartWorker) -> WorkerProcess:
    return start_worker(RUNPOD_HANDLER_MODE="stream").wait_until_ready()


@pytest.fixture(autouse=True)
def no_faults(plane: ControlPlane, worker: WorkerProcess) -> None:
    plane.faults.clear()
    plane.fault_for = lambda *_: None


def joined(items: list[Any]) -> bytes:
    return b"".join(base64.b64decode(item["audio"]) for item in items if "audio" in item)


def test_pieces_come_in_order_and_join_to_a_file_that_plays(plane: ControlPlane) -> None:
    job = done(plane, CHUNKED)
    assert job.status == "COMPLETED", job.error
    *pieces, summary = job.pieces
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    assert pieces[0]["start"] == 0
    assert [piece["end"] for piece in pieces[:-1]] == [piece["start"] for piece in pieces[1:]]
    samples, rate = soundfile.read(io.BytesIO(joined(pieces)))
    assert (len(samples), rate) == (summary["audio_length"], summary["sample_rate"])
    assert summary["chunks_processed"] > 1
    assert summary["pieces"] == len(pieces)


@pytest.mark.parametrize("format", ["pcm", "flac", "mp3", "opus", "aac"])
def test_every_format_joins_to_as_much_audio_as_was_spoken(
    plane: ControlPlane, format: str
) -> None:
    *pieces, summary = done(plane, {**CHUNKED, "output_format": format}).pieces
    data = joined(pieces)
    if format == "pcm":
        assert len(np.frombuffer(data, "<i2")) == summary["audio_length"]
        return
    with av.open(io.BytesIO(data)) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
        assert file.streams.audio[0].rate == summary["sample_rate"]
    assert 0 <= samples - summary["audio_length"] < 4000  # what encoders add at both ends


def test_the_first_piece_can_be_heard_while_the_rest_is_spoken(plane: ControlPlane) -> None:
    posted = asked(plane, "/run", {"input": LONG})
    job = plane.jobs[posted["id"]]
    plane.wait_until(lambda: job.pieces)
    heard = asked(plane, f"/stream/{job.id}")
    assert heard["status"] == "IN_PROGRESS"
    assert heard["stream"][0]["output"]["audio"]
    plane.cancel(job.id)


def test_the_final_output_has_all_the_pieces_once_more(plane: ControlPlane) -> None:
    job = done(plane, CHUNKED)
    assert job.output == job.pieces
    assert job.output[-1]["aggregated"] is True


def test_a_piece_is_sent_again_where_the_platform_did_not_take_it(plane: ControlPlane) -> None:
    plane.faults["job-stream"].extend(["500", "drop"])
    job = done(plane, CHUNKED)
    assert [piece["index"] for piece in job.pieces[:-1]] == list(range(len(job.pieces) - 1))


def test_no_piece_is_larger_than_a_stream_takes() -> None:
    longest = np.full(MOST_FRAMES * 512, 0.1, np.float32)  # as much as is handed out at once
    stream = Stream("wav", 44_100, RUN)
    item = asyncio.run(stream.piece(Piece(0, 0, longest, 0.0, 4.0, MOST_FRAMES, False)))
    assert 400_000 < len(json.dumps({"output": item})) < 1_000_000


def test_a_stream_that_is_too_much_for_the_final_output_leaves_its_audio_out_and_says_so() -> None:
    wave = np.full(44_100, 0.1, np.float32)
    stream = Stream("wav", 44_100, Room("/run", 300_000))
    items = []
    for index in range(4):
        items.append(asyncio.run(stream.piece(Piece(0, index, wave, index, index + 1, 86, False))))
        assert items[-1]["audio"]  # when it is posted
        stream.posted()
    summary = stream.summary(RESULT)
    assert summary["aggregated"] is False
    assert "is not in the final output" in summary["warnings"][-1]
    assert len(json.dumps([*items, summary])) < 300_000
    assert [item["index"] for item in items] == [0, 1, 2, 3]


def test_a_refused_stream_fails_with_its_words_and_its_code(plane: ControlPlane) -> None:
    job = done(plane, {"text": SENTENCE, "temperature": -1})
    assert job.status == "FAILED"
    assert job.error.startswith("invalid_input: temperature: -1")
    assert job.pieces == [{"error_code": "invalid_input", "retryable": False}]


def test_a_stream_to_a_bucket_is_refused(plane: ControlPlane) -> None:
    job = done(plane, {**SHORT, "output": "s3"})
    assert job.error.startswith("invalid_input: output is 's3', and this worker streams")


def test_openais_routes_stream_as_well(plane: ControlPlane) -> None:
    request = {"model": "dia", "input": "Hi.", "response_format": "wav"}
    job = done(plane, {"openai_route": "/v1/audio/speech", "openai_input": request})
    assert joined(job.pieces)[:4] == b"RIFF"
    models = done(plane, {"openai_route": "/v1/models", "openai_input": {}})
    assert models.output[0]["object"] == "list"


@pytest.mark.parametrize("fault", [None, "delay:5"], ids=["speaking", "posting"])
def test_a_cancelled_stream_frees_its_slots_within_200_ms(
    plane: ControlPlane, worker: WorkerProcess, fault: str | None
) -> None:
    job = plane.jobs[plane.submit({"text": SENTENCE * 4, "max_tokens": 3000})]
    if fault:
        plane.faults["job-stream"].append(fault)
    worker.wait_until_speaking(job.id)
    plane.wait_until(lambda: fault or job.pieces)
    time.sleep(1)
    plane.cancel(job.id)
    assert plane.wait_until(lambda: slots_free_ms(worker, job.id), 20) < 200
    assert done(plane, SHORT).status == "COMPLETED"

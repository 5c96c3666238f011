"""The examples as a user runs them, against a queue with a worker: each kind is started once."""

from __future__ import annotations

import io
import signal
import time
import wave
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile

from tests.end_to_end.examples.unreliable import (
    KEY,
    SENTENCES,
    Ended,
    Unreliable,
    call,
    start,
    text_of,
)
from tests.end_to_end.process import WorkerProcess, environment


@contextmanager
def worker_of(
    queue: Unreliable, folder: Path, tiny_model: Path, voice_folder: Path, mode: str
) -> Iterator[Unreliable]:
    variables = environment(tiny_model, voice_folder, folder)
    variables.update(queue.environment(), RUNPOD_HANDLER_MODE=mode, ENGINE_SLOTS="4")
    worker = WorkerProcess(folder, variables)
    try:
        worker.wait_until_ready()
        yield queue
    finally:
        worker.end()


@pytest.fixture(scope="module")
def endpoint(
    tiny_model: Path, voice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Unreliable]:
    """A queue with the worker, whose answers come in one."""
    folder = tmp_path_factory.mktemp("worker")
    with Unreliable() as queue, worker_of(queue, folder, tiny_model, voice_folder, "job"):
        yield queue


@pytest.fixture(scope="module")
def streaming(
    tiny_model: Path, voice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Unreliable]:
    """A queue with the worker, whose answers come in pieces."""
    folder = tmp_path_factory.mktemp("worker")
    with Unreliable() as queue, worker_of(queue, folder, tiny_model, voice_folder, "stream"):
        yield queue


# submit.py


def test_a_text_becomes_a_sound_file_and_one_sees_how_far_it_is(
    endpoint: Unreliable, tmp_path: Path
) -> None:
    file = tmp_path / "tide.flac"
    text = " ".join(SENTENCES[:24])
    given = ("--seed", 7, "--max-tokens", 30, "--voice", "narrator_warm")
    ended = call(endpoint, "submit.py", text, "-o", file, *given)
    assert ended.status == 0, ended.told
    assert soundfile.info(file).duration == pytest.approx(12 * 30 * 512 / 44_100, abs=0.2)
    assert "IN_PROGRESS" in ended.told
    assert " 12/12 " in ended.told
    assert any(f" {done}/12 " in ended.told for done in range(1, 12))
    assert f"{file}: 4." in ended.told
    assert "seed 7" in ended.told
    assert "warning: " in ended.told  # the embedded model is untrained
    assert endpoint.keys == {f"Bearer {KEY}"}


def test_what_the_worker_refuses_is_told_in_its_own_words(
    endpoint: Unreliable, tmp_path: Path
) -> None:
    file = tmp_path / "tide.wav"
    ended = call(endpoint, "submit.py", "Hello.", "-o", file, "--voice", "narator_worm")
    assert ended.status == 1
    assert "error: the job ended as FAILED: unknown_voice: " in ended.told
    assert "close are narrator_warm" in ended.told
    assert not file.exists()


def test_ctrl_c_cancels_the_job_on_the_server(endpoint: Unreliable, tmp_path: Path) -> None:
    before = set(endpoint.jobs)
    text = " ".join(SENTENCES)
    process = start(endpoint, "submit.py", text, "-o", tmp_path / "a.wav", "--max-tokens", 2000)
    (job_id,) = endpoint.wait_until(lambda: set(endpoint.jobs) - before)
    endpoint.wait_until(lambda: endpoint.jobs[job_id].status == "IN_PROGRESS")
    time.sleep(0.3)  # past the answer to /run
    process.send_signal(signal.SIGINT)
    ended = Ended(process)
    assert ended.status == 130
    assert f"asked to cancel job {job_id}; it is CANCELLED" in ended.told
    assert endpoint.jobs[job_id].status == "CANCELLED"


# stream.py


def test_the_sound_of_a_stream_comes_before_its_end_and_is_a_whole_file(
    streaming: Unreliable, tmp_path: Path
) -> None:
    file = tmp_path / "tide.wav"
    process = start(
        streaming, "stream.py", " ".join(SENTENCES[:8]), "-o", file, "--max-tokens", 100
    )
    streaming.wait_until(lambda: file.exists() and file.stat().st_size > 10_000)
    job = list(streaming.jobs.values())[-1]
    assert job.status == "IN_PROGRESS"
    ended = Ended(process)
    assert ended.status == 0, ended.told
    assert "first sound after " in ended.told
    with wave.open(str(file)) as sound:
        assert sound.getnframes() == job.output[-1]["audio_length"] == 4 * 100 * 512
        assert file.stat().st_size == 44 + 2 * sound.getnframes()


def test_a_stream_may_go_straight_to_a_player(streaming: Unreliable) -> None:
    given = ("--format", "mp3", "--max-tokens", 60)
    ended = call(streaming, "stream.py", "The tide is out.", "-o", "-", *given)
    assert ended.status == 0, ended.told
    samples, rate = soundfile.read(io.BytesIO(ended.sound))
    assert rate == 44_100
    assert len(samples) >= 60 * 512


def test_a_player_that_is_closed_cancels_the_job(streaming: Unreliable) -> None:
    given = ("--format", "pcm", "--max-tokens", 2000)
    process = start(streaming, "stream.py", " ".join(SENTENCES), "-o", "-", *given)
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    process.wait(30)
    assert process.stderr is not None
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.returncode == 1
    assert "it is CANCELLED" in told
    assert "Traceback" not in told


def test_an_endpoint_that_does_not_stream_still_gives_the_file(
    endpoint: Unreliable, tmp_path: Path
) -> None:
    file = tmp_path / "tide.wav"
    ended = call(endpoint, "stream.py", "The tide is out.", "-o", file, "--max-tokens", 30)
    assert ended.status == 0, ended.told
    assert "the endpoint does not stream" in ended.told
    assert soundfile.info(file).frames == 30 * 512


# book.py


def test_a_book_becomes_a_file_for_each_chapter_and_is_spoken_once(
    endpoint: Unreliable, tmp_path: Path
) -> None:
    text = " ".join(SENTENCES[:6])
    source, out = tmp_path / "book.txt", tmp_path / "out"
    source.write_text(f"# The Tide\n\n{text}\n\n# Who Is There?\nNobody.\n")
    given = ("book.py", source, "-o", out, "--part", 220, "--max-tokens", 20)
    before = len(endpoint.jobs)
    ended = call(endpoint, *given)
    assert ended.status == 0, ended.told
    assert "2 of 2 chapters are done" in ended.told
    asked = list(endpoint.jobs.values())[before:]
    texts = " ".join(text_of(job) for job in asked)
    assert Counter(texts.split()) == Counter(f"The Tide. {text} Who Is There? Nobody.".split())
    assert all(len(text_of(job)) <= 220 for job in asked)
    assert {job.request["input"]["voice_id"] for job in asked} == {"narrator_warm"}
    total = sum(
        soundfile.read(out / f"{name}.mp3")[0].size for name in ("01-the-tide", "02-who-is-there")
    )
    assert total >= sum(job.output["audio_length"] for job in asked)
    again = call(endpoint, *given)
    assert again.status == 0
    assert len(endpoint.jobs) == before + len(asked)

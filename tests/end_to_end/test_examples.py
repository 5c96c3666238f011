"""The examples as a user runs them: as processes, against the queue, with and without a worker."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import wave
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from aiohttp import web

from tests.end_to_end.control_plane import ENDPOINT, ControlPlane
from tests.end_to_end.platform_queue import FINAL, Job
from tests.end_to_end.process import ROOT, WorkerProcess, environment

EXAMPLES = ROOT / "examples"
KEY = "rpa_the-key-that-nobody-may-see"
RATE = 8000  # Hz, of the sounds made here
SENTENCES = [f"The tide is out, and number {number} of the boats lies dry." for number in range(40)]
Answer = Callable[[web.Request], Any]


class Unreliable(ControlPlane):
    """The queue, which may also treat clients badly: what it is to do stands in `wrong`.

    A status is answered instead of what was asked for; `drop` closes the connection at once, `lose`
    when all is done, `hang` answers with nothing, and `garble` with what is no JSON.
    """

    def __init__(self) -> None:
        self.wrong: dict[str, deque[str]] = defaultdict(deque)  # by the first part of the path
        self.asked: Counter[str] = Counter()
        self.keys: set[str | None] = set()  # that came with requests to the API
        self.sounds: dict[str, bytes] = {}  # to be had outside of the API
        self.strange_headers: list[str] = []  # of requests for them
        super().__init__()

    @property
    def base_url(self) -> str:
        return self.url.rpartition("/")[0]

    def _app(self) -> web.Application:
        app = super()._app()
        app.router.add_get("/sounds/{name}", self._sound)
        app.middlewares.append(self._or_wrong)
        return app

    @web.middleware
    async def _or_wrong(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        kind = request.path.split("/")[3] if request.path.startswith("/v2/") else ""
        if kind not in ("run", "status", "stream", "cancel"):
            return await handler(request)
        self.asked[kind] += 1
        self.keys.add(request.headers.get("Authorization"))
        wrong = self.wrong[kind].popleft() if self.wrong[kind] else ""
        if wrong.isdigit():
            return web.json_response({"error": "as the test wants it"}, status=int(wrong))
        if wrong == "hang":
            await asyncio.sleep(60)
        if wrong == "garble":
            return web.Response(text="<html>")
        response = None if wrong == "drop" else await handler(request)
        if wrong and request.transport is not None:
            request.transport.close()
        return response or web.Response()

    async def _sound(self, request: web.Request) -> web.StreamResponse:
        self.strange_headers += [name for name in request.headers if name == "Authorization"]
        sound = self.sounds.get(request.match_info["name"])
        return web.Response(status=403) if sound is None else web.Response(body=sound)


class Ended:
    """How a script ended."""

    def __init__(self, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
        self.sound, told = process.communicate(timeout=timeout_s)
        self.told = told.decode()
        self.status = process.returncode
        assert "Traceback" not in self.told, self.told
        assert KEY not in self.told
        assert KEY.encode() not in self.sound


@pytest.fixture
def queue() -> Iterator[Unreliable]:
    """A queue without a worker."""
    with Unreliable() as queue:
        yield queue


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


def start(
    queue: Unreliable, script: str, *arguments: object, **more: str
) -> subprocess.Popen[bytes]:
    """Starts a script as a user would, with questions in quick succession."""
    variables = {
        "PATH": os.environ["PATH"],
        "RUNPOD_ENDPOINT_ID": ENDPOINT,
        "RUNPOD_API_KEY": KEY,
        "RUNPOD_BASE_URL": queue.base_url,
        **more,
    }
    return subprocess.Popen(
        [sys.executable, EXAMPLES / script, *map(str, arguments), "--poll", "0.05"],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def call(queue: Unreliable, script: str, *arguments: object, **more: str) -> Ended:
    return Ended(start(queue, script, *arguments, **more))


def tone(seconds: float = 0.1) -> bytes:
    """A WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, RATE, 0, "NONE", ""))
        output.writeframes(b"\x01\x02" * round(seconds * RATE))
    return file.getvalue()


def speak(job: Job, sound: bytes | None = None) -> None:
    """Does a job, as a worker would."""
    audio = base64.b64encode(sound or tone()).decode()
    job.output = {"audio": audio, "duration": 0.1, "seed": 42, "warnings": ["A warning."]}
    job.status = "COMPLETED"


def fail(job: Job, status: str = "FAILED") -> None:
    job.error = "out_of_memory: there is no room\nfor this job"
    job.status = status


@contextmanager
def speaker(queue: Unreliable, do: Callable[[Job], None] = speak) -> Iterator[None]:
    """Does the jobs as they come, one after the other."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            waiting = [job for job in list(queue.jobs.values()) if job.status == "IN_QUEUE"]
            for job in waiting[:1]:
                do(job)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def only_job(queue: Unreliable) -> Job:
    (job,) = queue.jobs.values()
    return job


def text_of(job: Job) -> str:
    return str(job.request["input"]["text"])


def submitted(queue: Unreliable) -> Job:
    """The first job, once it is there."""
    queue.wait_until(lambda: queue.jobs)
    return next(iter(queue.jobs.values()))


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


def test_a_server_that_is_not_there_is_given_up_in_time(client: ModuleType) -> None:
    async def ask() -> None:
        async with client.Endpoint("e", KEY, "http://127.0.0.1:9") as endpoint:
            endpoint.patience_s = 1.0
            await endpoint.submit({"text": "Hello."}, 10)

    started = time.monotonic()
    with pytest.raises(client.ClientError, match=r"does not answer \(ConnectError\)") as raised:
        asyncio.run(ask())
    assert not isinstance(raised.value, client.OutcomeUnknown)
    assert 0.3 < time.monotonic() - started < 3


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


def pieces(aggregated: bool = True, count: int = 3) -> list[dict[str, Any]]:
    """What a streaming worker yields for as many pieces of 0.1 s, the header in the first."""
    data = tone(0.1 * count)
    size = (len(data) - 44) // count
    parts = [data[44 + size * index : 44 + size * (index + 1)] for index in range(count)]
    found: list[dict[str, Any]] = [
        {
            "index": index,
            "start": round(0.1 * index, 3),
            "end": round(0.1 * index + 0.1, 3),
            "audio": base64.b64encode((data[:44] if index == 0 else b"") + part).decode(),
        }
        for index, part in enumerate(parts)
    ]
    summary = {"pieces": count, "aggregated": aggregated, "duration": 0.3, "seed": 1}
    return [*found, {**summary, "warnings": []}]


def finish(job: Job, items: list[dict[str, Any]]) -> None:
    whole = items[-1]["aggregated"]
    kept = [{name: item[name] for name in item if whole or name != "audio"} for item in items]
    job.output, job.status = kept, "COMPLETED"


def test_a_piece_that_is_lost_on_the_way_is_fetched_at_the_end(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces.append(items[0])
    queue.wait_until(lambda: job.read == 1)
    queue.wrong["stream"].append("lose")
    job.pieces.append(items[1])
    queue.wait_until(lambda: job.read == 2)
    job.pieces += items[2:]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 0, ended.told
    assert file.read_bytes() == tone(0.3)


def test_a_piece_that_is_lost_for_good_is_told_and_what_came_is_kept(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces(aggregated=False)
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], items[2], items[3]]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 1
    assert "error: a piece was lost on the way, and cannot be had again; 0.10 s" in ended.told
    assert file.read_bytes() == base64.b64decode(items[0]["audio"])


def test_a_piece_that_comes_twice_is_written_once(queue: Unreliable, tmp_path: Path) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], items[0], items[1], items[0], *items[1:]]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 0, ended.told
    assert file.read_bytes() == tone(0.3)


def test_a_stream_that_fails_keeps_what_came_and_says_why(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], {"error_code": "out_of_memory", "retryable": True}]
    fail(job)
    ended = Ended(process)
    assert ended.status == 1
    assert "error: the job ended as FAILED: out_of_memory" in ended.told
    assert file.read_bytes() == base64.b64decode(items[0]["audio"])


# book.py


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder of five chapters, of one job each."""
    folder = tmp_path / "chapters"
    folder.mkdir()
    for number in (1, 2, 3, 4, 10):
        (folder / f"{number}.txt").write_text(f"This is chapter {number}.")
    return folder


def read(book: Path, *arguments: object) -> tuple[object, ...]:
    """What `book.py` is called with."""
    return ("book.py", book, "-o", book.parent / "out", "--format", "wav", *arguments)


def files(book: Path) -> set[str]:
    return {file.stem for file in (book.parent / "out").glob("*.wav")}


def states(book: Path) -> Counter[str]:
    """How many parts are in which state, as `book.json` has it."""
    file = book.parent / "out" / "book.json"
    notes = json.loads(file.read_text()) if file.exists() else {}
    return Counter(note["state"] for note in notes.values())


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


def test_a_book_that_is_killed_goes_on_and_asks_for_nothing_twice(
    queue: Unreliable, book: Path
) -> None:
    process = start(queue, *read(book, "--concurrency", 2))
    queue.wait_until(lambda: states(book)["running"] == 2)
    for job in list(queue.jobs.values()):
        speak(job)
    queue.wait_until(lambda: states(book) == {"done": 2, "running": 2})
    process.kill()
    process.communicate()
    assert len(queue.jobs) == 4
    assert files(book) == {"1", "2"}
    for job in list(queue.jobs.values())[2:]:  # while nobody asks
        speak(job, tone(0.3))
    with speaker(queue):
        ended = call(queue, *read(book, "--concurrency", 2))
    assert ended.status == 0, ended.told
    assert "5 of 5 chapters are done" in ended.told
    assert [text_of(job)[-3:-1].strip() for job in queue.jobs.values()] == [
        "1",
        "2",
        "3",
        "4",
        "10",
    ]
    assert files(book) == {"1", "2", "3", "4", "10"}
    assert (book.parent / "out" / "3.wav").read_bytes() == tone(0.3)


def test_no_more_of_a_book_is_under_way_than_was_allowed(queue: Unreliable, book: Path) -> None:
    most = 0

    def watch(job: Job) -> None:
        nonlocal most
        time.sleep(0.1)
        most = max(most, sum(job.status not in FINAL for job in list(queue.jobs.values())))
        speak(job)

    with speaker(queue, watch):
        ended = call(queue, *read(book, "--concurrency", 3))
    assert ended.status == 0, ended.told
    assert most == 3


def test_a_chapter_that_failed_is_tried_again_by_the_same_command(
    queue: Unreliable, book: Path
) -> None:
    def stumble(job: Job) -> None:
        if "chapter 3" in text_of(job):
            fail(job)
        else:
            speak(job)

    with speaker(queue, stumble):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 3.01: the job ended as FAILED: out_of_memory" in ended.told
    assert "4 of 5 chapters are done" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 6
    assert files(book) == {"1", "2", "3", "4", "10"}


def test_a_chapter_whose_answer_was_lost_is_sent_again_only_if_one_says_so(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].append("lose")
    with speaker(queue):
        ended = call(queue, *read(book, "--concurrency", 1))
        assert ended.status == 1
        assert "failed: 1.01: the job may have been accepted" in ended.told
        cautious = call(queue, *read(book))
        assert cautious.status == 1
        assert "failed: 1.01: it was sent before, and may have been accepted" in cautious.told
        assert len(queue.jobs) == 5
        decided = call(queue, *read(book, "--resubmit"))
    assert decided.status == 0, decided.told
    assert len(queue.jobs) == 6


def test_a_book_that_is_killed_while_it_sends_a_chapter_does_not_send_it_again(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].append("hang")
    process = start(queue, *read(book, "--concurrency", 1))
    queue.wait_until(lambda: queue.asked["run"])
    process.kill()
    process.communicate()
    with speaker(queue):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 1.01: it was sent before, and may have been accepted" in ended.told
    assert len(queue.jobs) == 4
    assert files(book) == {"2", "3", "4", "10"}


def test_a_server_that_loses_every_answer_is_not_sent_the_whole_book(
    queue: Unreliable, book: Path
) -> None:
    queue.wrong["run"].extend(["lose"] * 5)
    ended = call(queue, *read(book, "--concurrency", 1))
    assert ended.status == 1
    assert len(queue.jobs) == 3
    assert "not sent, after 3 jobs of which no answer came" in ended.told


def test_a_result_that_nobody_fetched_in_time_is_asked_for_again(
    queue: Unreliable, book: Path
) -> None:
    process = start(queue, *read(book, "--concurrency", 1))
    queue.wait_until(lambda: states(book)["running"] == 1)
    process.kill()
    process.communicate()
    queue.jobs.clear()
    with speaker(queue):
        ended = call(queue, *read(book))
    assert ended.status == 0, ended.told
    assert len(queue.jobs) == 5


def test_a_chapter_whose_address_has_expired_is_asked_for_again(
    queue: Unreliable, book: Path
) -> None:
    def upload(job: Job) -> None:
        job.output = {"audio_url": queue.base_url.replace("/v2", "/sounds/expired")}
        job.status = "COMPLETED"

    with speaker(queue, upload):
        ended = call(queue, *read(book))
    assert ended.status == 1
    assert "failed: 1.01: the job or its file is not there, or not any more" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 10


def test_ctrl_c_leaves_a_book_on_the_server_to_be_fetched(queue: Unreliable, book: Path) -> None:
    process = start(queue, *read(book))
    queue.wait_until(lambda: states(book)["running"] == 4)
    process.send_signal(signal.SIGINT)
    ended = Ended(process)
    assert ended.status == 130
    assert "the same command fetches it" in ended.told
    assert queue.asked["cancel"] == 0


def test_a_chapter_that_takes_too_long_is_waited_for_the_next_time(
    queue: Unreliable, book: Path
) -> None:
    ended = call(queue, *read(book, "--concurrency", 5, "--timeout", 0.5))
    assert ended.status == 1
    assert "failed: 10.01: the job was not done within 0.5 s" in ended.told
    with speaker(queue):
        again = call(queue, *read(book))
    assert again.status == 0, again.told
    assert len(queue.jobs) == 5


def test_a_chapter_that_was_changed_is_spoken_anew_and_the_others_are_not(
    queue: Unreliable, book: Path
) -> None:
    with speaker(queue):
        call(queue, *read(book))
        (book / "2.txt").write_text("This is another chapter.")
        ended = call(queue, *read(book))
    assert ended.status == 0, ended.told
    assert [text_of(job) for job in queue.jobs.values()][5:] == ["This is another chapter."]


def test_a_key_that_is_refused_ends_a_book_at_once(queue: Unreliable, book: Path) -> None:
    queue.wrong["run"].extend(["401"] * 5)
    ended = call(queue, *read(book))
    assert ended.status == 1
    assert ended.told.splitlines()[-1] == "error: access is refused (status 401)"
    assert states(book) == {}


def test_two_commands_do_not_speak_the_same_book_at_once(queue: Unreliable, book: Path) -> None:
    process = start(queue, *read(book))
    queue.wait_until(lambda: states(book)["running"] == 4)
    ended = call(queue, *read(book))
    process.kill()
    process.communicate()
    assert ended.status == 1
    assert "error: another book.py works in " in ended.told


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "there is nothing to speak in"), (b"\xff\xfe\xff", "is not UTF-8")],
    ids=["empty", "not UTF-8"],
)
def test_a_book_that_cannot_be_read_is_told_before_anything_is_asked(
    queue: Unreliable, tmp_path: Path, content: bytes, words: str
) -> None:
    source = tmp_path / "book.txt"
    source.write_bytes(content)
    ended = call(queue, "book.py", source, "-o", tmp_path / "out")
    assert ended.status == 1
    assert words in ended.told
    assert not queue.asked


# The modules beside them


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("client")


@pytest.fixture
def chapters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("chapters")


def test_a_long_chapter_is_cut_between_sentences_and_keeps_every_word(chapters: ModuleType) -> None:
    text = " ".join(SENTENCES[:20]) + "\n\n" + " ".join(SENTENCES[20:])
    parts = chapters.cut(text, 300)
    assert " ".join(parts).split() == text.split()
    assert all(150 < len(part) <= 300 and part.endswith(".") for part in parts[:-1])


def test_a_speaker_who_is_cut_off_goes_on_as_the_same_one(chapters: ModuleType) -> None:
    text = "[S1] Go on. [S2] " + " ".join(SENTENCES[:10])
    parts = chapters.cut(text, 200)
    assert all(part.startswith("[S2] ") for part in parts[1:])
    assert max(map(len, parts)) <= 200


def test_text_without_a_place_to_cut_is_cut_all_the_same(chapters: ModuleType) -> None:
    assert chapters.cut("a" * 450, 200) == ["a" * 200, "a" * 200, "a" * 50]


def test_joined_files_play_as_long_as_their_parts(chapters: ModuleType) -> None:
    samples = np.sin(np.arange(22_050) / 20) * 0.5
    file = io.BytesIO()
    soundfile.write(file, samples, 44_100, format="MP3")
    joined = io.BytesIO(chapters.join([file.getvalue()] * 3, "mp3"))
    assert len(soundfile.read(joined)[0]) == pytest.approx(3 * len(samples), abs=3 * 2500)
    waves = io.BytesIO(chapters.join([tone(0.1), tone(0.2)], "wav"))
    assert len(soundfile.read(waves)[0]) == round(0.3 * RATE)
    assert joined.getvalue().count(b"Xing") == 1


def test_chapters_in_a_folder_are_read_in_the_order_of_their_numbers(
    chapters: ModuleType, book: Path
) -> None:
    assert [chapter.name for chapter in chapters.read_book(book)] == ["1", "2", "3", "4", "10"]


def test_the_client_to_be_copied_is_short_and_needs_httpx_alone() -> None:
    source = (EXAMPLES / "client.py").read_text()
    assert len(source.splitlines()) < 150
    imported = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line[:6] in ("import", "from c")
    }
    assert imported - set(sys.stdlib_module_names) == {"httpx"}

"""The examples as processes, and the queue that they ask, whose jobs a test may do itself."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import sys
import threading
import wave
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.end_to_end.control_plane import ENDPOINT, ControlPlane
from tests.end_to_end.platform_queue import Job
from tests.end_to_end.process import ROOT

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


def text_of(job: Job) -> str:
    return str(job.request["input"]["text"])

"""Parcels to deliver, and stores that are not S3: in memory, broken, or slow over a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from pydantic import SecretStr

from worker.audio.encode import FORMATS, EncodedAudio, encode_audio
from worker.delivery import Answer, Bucket, Parcel
from worker.errors import WorkerError

RATE = 44_100
SECRET = "hush-hush-hush"
KEY_ID = "AKIDOFATEST"


def tone(seconds: float) -> EncodedAudio:
    """A wav of so many seconds."""
    wave = 0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.05)
    return encode_audio(wave.astype(np.float32), RATE, "wav")


def file_of(size: int, format: str = "wav", seconds: float = 180) -> EncodedAudio:
    """So many bytes that call themselves audio."""
    samples = round(seconds * RATE)
    return EncodedAudio(b"\x01" * size, format, FORMATS[format].mime_type, RATE, samples)


def describe(audio: EncodedAudio, warnings: Sequence[str]) -> Answer:
    return {"format": audio.format, "duration": audio.duration_s, "warnings": ["first", *warnings]}


def parcel_of(
    audio: EncodedAudio,
    others: Mapping[str, int] | None = None,
    *,
    job_id: str = "job-1",
    free: bool = True,
    describe: Callable[[EncodedAudio, Sequence[str]], Answer] = describe,
) -> Parcel:
    """A parcel; `others` are the sizes of its audio in other formats."""

    def encode(format: str) -> EncodedAudio:
        return file_of((others or {})[format], format)

    return Parcel(job_id, audio, encode, free, describe, seed=42, fingerprint="f00d")


def bucket_at(url: str, name: str = "speech", key_id: str = KEY_ID, secret: str = SECRET) -> Bucket:
    return Bucket(url, name, "us-east-1", SecretStr(key_id), SecretStr(secret))


@dataclass
class MemoryStore:
    """Keeps files, or fails."""

    failure: WorkerError | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    attempts: int = 0

    def put(self, key: str, audio: EncodedAudio, metadata: Mapping[str, str]) -> str | None:
        self.attempts += 1
        if self.failure is not None:
            raise self.failure
        self.files[key] = audio.data
        return f"memory:{key}"


class ScriptedServer(ThreadingHTTPServer):
    """Meets its n-th request with the n-th behaviour, and later ones with the last."""

    daemon_threads = True

    def __init__(self, behaviours: Sequence[Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behaviours = list(behaviours)
        self.bodies: list[bytes] = []  # of the requests that were read to their end
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Request(BaseHTTPRequestHandler):
    """One request, of which a behaviour makes what it likes."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    @property
    def size(self) -> int:
        return int(self.headers["Content-Length"])

    def do_PUT(self) -> None:
        behaviours = self.server.behaviours
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        behaviour(self)

    def read_all(self) -> None:
        self.server.bodies.append(self.rfile.read(self.size))

    def nap(self, seconds: float) -> bool:
        """Whether the test still runs after that time."""
        return not self.server.ended.wait(seconds)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


Behaviour = Callable[[Request], None]


@contextmanager
def server(*behaviours: Behaviour) -> Iterator[ScriptedServer]:
    """An HTTP server that behaves as told, for as long as the context lasts."""
    http = ScriptedServer(behaviours)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield http
    finally:
        http.ended.set()
        http.shutdown()
        thread.join()
        http.server_close()


def answers(status: int, body: str = "", etag: str = '"abc"') -> Behaviour:
    """Reads everything, then answers so."""

    def behave(request: Request) -> None:
        request.read_all()
        request.send_response(status)
        if etag and status == 200:
            request.send_header("ETag", etag)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body.encode())

    return behave


def refusal(code: str) -> str:
    """An error in S3's words, which name things that are nobody else's business."""
    return f"<Error><Code>{code}</Code><Message>{KEY_ID} at 10.1.2.3 /srv/speech</Message></Error>"


def stalls(request: Request) -> None:
    """Reads everything, and says nothing."""
    request.read_all()
    request.nap(30)
    request.close_connection = True


def drips(request: Request) -> None:
    """Shows some life now and then, and never comes to an end."""
    request.read_all()
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while request.nap(0.02):
        request.wfile.write(b"x")
    request.close_connection = True


def breaks_off(request: Request) -> None:
    """Hangs up when half of the file is there."""
    request.rfile.read(request.size // 2)
    request.connection.close()
    request.close_connection = True


def breaks_off_its_answer(request: Request) -> None:
    """Reads everything, and hangs up in the middle of a word."""
    request.read_all()
    request.wfile.write(b"HTTP/1.1 200 O")
    request.close_connection = True

"""A server that plays the hub: files under their addresses, and whatever a hub may do wrong."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    range: str | None
    authorization: str | None


@dataclass(frozen=True)
class Answer:
    """How to answer one request, instead of properly.

    Attributes:
        status: With nothing else, that is the whole answer.
        location: Where to go instead, with status 302.
        retry_after: Seconds.
        stop_after: Bytes, after which the connection ends.
        stall_after: Bytes, after which nothing comes any more.
        ignore_range: Send everything.
        shift_range: Send a part that begins so many bytes later than was asked for.
    """

    status: int = 0
    location: str = ""
    retry_after: str = ""
    stop_after: int | None = None
    stall_after: int | None = None
    ignore_range: bool = False
    shift_range: int = 0


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Requests)
        self.url = f"http://{host}:{self.server_port}"
        self.files: dict[str, bytes] = {}  # by path
        self.planned: deque[Answer] = deque()  # of the requests to come; then proper ones
        self.asked: list[Asked] = []
        self.ending = threading.Event()

    @property
    def ranges(self) -> list[str | None]:
        return [asked.range for asked in self.asked]


class _Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = self.headers
        self.server.asked.append(
            Asked(self.path, headers.get("Range"), headers.get("Authorization"))
        )
        plan = self.server.planned.popleft() if self.server.planned else Answer()
        content = self.server.files.get(self.path.partition("?")[0])
        if plan.status:
            self._only(plan.status, plan)
        elif content is None:
            self._only(404, plan)
        else:
            self._send(content, plan)

    def _only(self, status: int, plan: Answer) -> None:
        self.send_response(status)
        if plan.location:
            self.send_header("Location", plan.location)
        if plan.retry_after:
            self.send_header("Retry-After", plan.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, plan: Answer) -> None:
        start = self._start(plan)
        if start >= len(content):
            self._only(416, plan)
            return
        partial = start > 0
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        limits = [limit for limit in (plan.stop_after, plan.stall_after) if limit is not None]
        self.wfile.write(body[: limits[0]] if limits else body)
        self.wfile.flush()
        if plan.stall_after is not None:
            self.server.ending.wait(5)
        self.close_connection = bool(limits)

    def _start(self, plan: Answer) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or plan.ignore_range:
            return 0
        return int(asked[1]) + plan.shift_range

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Hub]:
    """A hub that runs until the block ends."""
    with Hub(host) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.ending.set()
        hub.shutdown()

"""A host on this machine that does as it is told, and a resolver that finds it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from worker.errors import InvalidReference
from worker.remote import RemoteReferences, is_public
from worker.schema import MAX_REFERENCE_BYTES

HERE, TRAP = "127.0.0.1", "127.0.0.2"  # in these tests the first counts as public
RECORDING = bytes(range(256)) * 40
NOT_PUBLIC = "reference_audio_url: the host has no public address"

Page = Callable[[], Iterable[bytes | None]]  # pieces; None waits until the client leaves
Get = Callable[..., bytes]


class Host:
    """An HTTPS server that plays what a test wrote for each path, byte for byte."""

    def __init__(self, certificate: Path, address: str = HERE, port: int = 0) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[str] = []
        self.named: list[str | None] = []  # by the client, in TLS
        self.connections = 0
        self.asked, self.left = threading.Event(), threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._context.sni_callback = lambda _socket, name, _context: self.named.append(name)
        self._listener = socket.create_server((address, port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str, host: str = "voices.test") -> str:
        return f"https://{host}:{self.port}{path}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            plain,
            suppress(OSError),  # the client left, or did not like the certificate
            self._context.wrap_socket(plain, server_side=True) as connection,
        ):
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65_536)
            self.requests.append(request.decode())
            self.asked.set()
            for piece in self.pages[request.split()[1].decode()]():
                if piece is None:
                    connection.recv(1)
                    self.left.set()
                else:
                    connection.sendall(piece)


def page(body: bytes = b"", status: str = "200 OK", **headers: str) -> Page:
    lines = {"Content_Length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return lambda: [f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body]


def chunked(pieces: Iterable[bytes]) -> Page:
    def play() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for piece in pieces:
            yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        yield b"0\r\n\r\n"

    return play


def redirect(location: str, status: str = "302 Found") -> Page:
    return page(status=status, Location=location)


class Names:
    """A resolver: each name with its answers in turn, the last of which stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.asked: list[str] = []
        here = {"voices.test": [[HERE]], "mirror.test": [[HERE]], "other.test": [[HERE]]}
        given = {f"{name}.test": list(each) for name, each in answers.items()}
        self._answers = {**here, **given}

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self._answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]


def allowed_here(address: str) -> bool:
    return address == HERE or is_public(address)


def fetcher(host: Host, certificate: Path, **changed: Any) -> RemoteReferences:
    options = {
        "timeout_s": 10.0,
        "max_bytes": MAX_REFERENCE_BYTES,
        "resolve": Names(),
        "allowed": allowed_here,
        "context": ssl.create_default_context(cafile=certificate),
        "ports": (host.port,),
        **changed,
    }
    return RemoteReferences(**options)


def refused(get: Get, what: str, **changed: Any) -> str:
    with pytest.raises(InvalidReference) as caught:
        get(what, **changed)
    return caught.value.message


def stalled() -> Iterator[bytes | None]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nRIFF"
    yield None

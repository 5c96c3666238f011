"""One HTTP connection of a download: where it goes, what it carries, and what its failures mean.

Plain `urllib`, not `huggingface_hub`: one way for the hub and for releases elsewhere, and a say in
when to go on, when to start again and when to give up.
"""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

BLOCK = 1 << 20  # bytes read at once, at most
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
BEYOND_THE_END = 416


class DownloadFailed(Exception):
    """The file cannot be had; the message is one line and holds no secrets."""


class TryAgain(Exception):
    """What went wrong may pass.

    Attributes:
        pause_s: How long the server asked to be left alone.
        from_scratch: Whether what was received before is of no use.
    """

    def __init__(self, reason: str, pause_s: float = 0.0, from_scratch: bool = False) -> None:
        super().__init__(reason)
        self.pause_s = pause_s
        self.from_scratch = from_scratch


@dataclass(frozen=True)
class RemoteFile:
    """What to download.

    Attributes:
        url: Where it is.
        size: In bytes; `None` where nobody has said.
        sha256: In hex; `None` where nobody has said: then whatever comes is taken.
        token: Sent to the host of `url` alone.
    """

    url: str
    size: int | None = None
    sha256: str | None = None
    token: str | None = field(default=None, repr=False)

    def failure(self, reason: str) -> DownloadFailed:
        """What to raise: the reason, after the address."""
        return DownloadFailed(f"{shown(self.url)}: {reason}")


def shown(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def connect(remote: RemoteFile, start: int, silence_s: float) -> Any:
    """A response whose body is the file from `start` on, or (status 200) all of it.

    Raises:
        TryAgain: where another attempt may do better.
        DownloadFailed: where it would not.
    """
    headers = {"User-Agent": "dia-worker", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if remote.token:
        headers["Authorization"] = f"Bearer {remote.token}"
    try:
        response = _OPENER.open(Request(remote.url, headers=headers), timeout=silence_s)
    except HTTPError as error:
        with error:
            _refused(remote, error)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise TryAgain(_words(error)) from error
    sent = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status == 206 and (sent is None or int(sent[1]) != start):
        response.close()
        raise TryAgain("the server sent another part than was asked for", from_scratch=True)
    return response


def read_block(response: Any) -> bytes:
    """The next bytes of a body, empty at its end. Raises `TryAgain` where the connection broke."""
    try:
        block: bytes = response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise TryAgain(_words(error)) from error
    return block


def _refused(remote: RemoteFile, error: HTTPError) -> NoReturn:
    answer = f"HTTP {error.code} {error.reason}"
    if error.code == BEYOND_THE_END:  # what is there already is longer than the file
        raise TryAgain(answer, from_scratch=True)
    if error.code in WORTH_ANOTHER_TRY:
        asked_for = error.headers.get("Retry-After", "")
        raise TryAgain(answer, float(asked_for) if asked_for.isdigit() else 0.0)
    hint = "; HF_TOKEN must hold a token that may read it" if error.code in (401, 403) else ""
    raise remote.failure(answer + hint)


def _words(error: BaseException) -> str:
    inner = getattr(error, "reason", error)  # of a URLError, what it wraps
    return " ".join(str(inner).split()) or type(inner).__name__


class _Redirects(HTTPRedirectHandler):
    """Follows redirects; the token stays with the host that it was meant for."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _origin(request.full_url) != _origin(req.full_url):
            request.remove_header("Authorization")
        return request


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


_OPENER: OpenerDirector = build_opener(_Redirects)

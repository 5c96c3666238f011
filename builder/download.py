"""Downloads one file, whole and checked, or says in one line why that cannot be.

Until a file is whole and checked it is called `<name>.part`; another attempt, or another process,
continues it. Does not know which files are wanted, nor how a connection is made.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from builder.connection import BLOCK, RemoteFile, TryAgain, connect, read_block

logger = logging.getLogger(__name__)

PART = ".part"
REPORT_EVERY_S = 5.0


@dataclass(frozen=True)
class Received:
    """What a file turned out to be."""

    size: int
    sha256: str

    def fits(self, remote: RemoteFile) -> bool:
        """Whether this is the file that was wanted, as far as that is known."""
        return remote.size in (None, self.size) and remote.sha256 in (None, self.sha256)


@dataclass(frozen=True)
class Patience:
    """How long to go on.

    Attributes:
        attempts: Connections for one file.
        silence_s: How long a server may send nothing.
        pause_s: Before the second attempt; doubled each time.
        longest_pause_s: Also of those that a server asks for.
    """

    attempts: int = 8
    silence_s: float = 30.0
    pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def pause_before(self, attempt: int, asked_for: float) -> float:
        """Seconds; the first attempt has number 0."""
        return min(max(self.pause_s * 2.0 ** (attempt - 1), asked_for), self.longest_pause_s)


PATIENT = Patience()


def download(remote: RemoteFile, place: Path, patience: Patience = PATIENT) -> Received:
    """Puts a file in its place; one that is there and has the right hash is left alone.

    Raises:
        DownloadFailed: naming the address, what was expected and what was found.
    """
    if remote.sha256 and place.is_file():
        found = measure(place)
        if found.fits(remote):
            logger.info("%s: there already, sha256 %s", place.name, found.sha256)
            return found
    place.parent.mkdir(parents=True, exist_ok=True)
    reason = TryAgain("not tried")
    for attempt in range(patience.attempts):
        if attempt:
            pause = patience.pause_before(attempt, reason.pause_s)
            logger.warning("%s: %s; trying again in %.1f s", place.name, reason, pause)
            time.sleep(pause)
        try:
            return _attempt(remote, place, patience.silence_s)
        except TryAgain as error:
            reason = error
            if error.from_scratch:
                _part_of(place).unlink(missing_ok=True)
    raise remote.failure(f"{reason}; given up after {patience.attempts} attempts")


def measure(file: Path) -> Received:
    """Size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            size += len(block)
    return Received(size, digest.hexdigest())


def _part_of(place: Path) -> Path:
    return place.with_name(place.name + PART)


def _attempt(remote: RemoteFile, place: Path, silence_s: float) -> Received:
    part = _part_of(place)
    with _Writer(part, remote) as writer:
        resumed = writer.size > 0
        if writer.size != remote.size:  # else only the check was left to do
            with connect(remote, writer.size, silence_s) as response:
                if response.status != 206:  # all of it, whatever was asked for
                    writer.restart()
                _receive(response, writer, place.name)
        found = writer.received
    if not found.fits(remote):
        complaint = f"{_expected(remote)}, found {found.size} bytes with sha256 {found.sha256}"
        if resumed:  # perhaps only what lay there was wrong
            raise TryAgain(complaint, from_scratch=True)
        part.unlink()
        raise remote.failure(complaint)
    part.replace(place)
    logger.info("%s: %d bytes, sha256 %s", place.name, found.size, found.sha256)
    return found


def _receive(response: Any, writer: _Writer, name: str) -> None:
    announced = response.headers.get("Content-Length")
    whole = writer.size + int(announced) if announced else writer.remote.size
    progress = _Progress(name, writer.size, whole)
    while not writer.too_long and (block := read_block(response)):
        writer.write(block)
        progress.report(writer.size)
    if whole is not None and writer.size < whole:
        raise TryAgain(f"the connection ended after {writer.size} of {whole} bytes")


def _expected(remote: RemoteFile) -> str:
    size = "any number of" if remote.size is None else str(remote.size)
    return f"expected {size} bytes with sha256 {remote.sha256 or 'of any value'}"


class _Writer:
    """A file that is being received: what lies there, what comes, and the hash of both."""

    def __init__(self, part: Path, remote: RemoteFile) -> None:
        self.remote = remote
        self.size = 0
        self._digest = hashlib.sha256()
        self._part = part
        self._file: IO[bytes]

    def __enter__(self) -> _Writer:
        self._file = self._part.open("r+b" if self._part.is_file() else "w+b")
        while block := self._file.read(BLOCK):
            self._count(block)
        if self.too_long:
            self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def received(self) -> Received:
        return Received(self.size, self._digest.hexdigest())

    @property
    def too_long(self) -> bool:
        return self.remote.size is not None and self.size > self.remote.size

    def write(self, block: bytes) -> None:
        try:
            self._file.write(block)
        except OSError as error:
            raise self.remote.failure(
                f"{self._part} cannot be written: {error.strerror}"
            ) from error
        self._count(block)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest, self.size = hashlib.sha256(), 0

    def _count(self, block: bytes) -> None:
        self._digest.update(block)
        self.size += len(block)


class _Progress:
    """A line now and then: the log of a build is no terminal."""

    def __init__(self, name: str, there: int, whole: int | None) -> None:
        self._name, self._there, self._whole = name, there, whole
        self._began = self._told = time.monotonic()

    def report(self, size: int) -> None:
        now = time.monotonic()
        if now - self._told < REPORT_EVERY_S:
            return
        self._told = now
        of = f" of {self._whole / 1e6:.0f}" if self._whole else ""
        speed = (size - self._there) / (now - self._began) / 1e6
        logger.info("%s: %.0f%s MB, %.1f MB/s", self._name, size / 1e6, of, speed)

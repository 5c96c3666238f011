"""Speaks a book: one sound file for each chapter, and nothing twice if it has to begin again.

    pip install httpx tqdm
    export RUNPOD_ENDPOINT_ID=… RUNPOD_API_KEY=…      (RUNPOD_BASE_URL: another server)
    python examples/book.py book.txt -o book          (chapters begin with "# Heading")
    python examples/book.py chapters/ -o book         (a folder of .txt files)

Long chapters are spoken in parts of `--part` characters, several at a time, and joined. What was
asked for stands in `book.json` beside the files, written whole or not at all: after a crash, or
Ctrl-C, the same command fetches what the server has done meanwhile (it keeps results for 30
minutes), asks for what is missing, and tries again what failed. A changed text is spoken anew.

Each part is noted before it is sent. If the answer is lost, or the script dies at that moment, the
server may have accepted it. Such parts are listed and not sent again, unless you add `--resubmit`:
the price is that they may be spoken, and paid for, twice.

Exit status: 0 if every chapter is there, 1 if not, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chapters import FORMATS, Chapter, cut, join, read_book
from client import ClientError, Denied, Endpoint, JobFailed, JobGone, Json, OutcomeUnknown
from terminal import add_job_arguments, endpoint, job_input, run, say, within
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Arguments = argparse.Namespace
MOST_CHARACTERS = 10_000  # that a job may have
MOST_UNKNOWN = 3  # lost answers in a row, after which no more is sent


@dataclass(frozen=True, eq=False)
class Part:
    """One job: a chapter, or a stretch of it."""

    chapter: Chapter
    name: str
    given: Json
    key: str  # the same only for the same words, asked for in the same way


class Ledger:
    """What was asked for, and what came of it: `book.json`, and the parts' files.

    A part is `sending` (it may have been accepted), `running` under the id of a job, `done`, or
    not noted at all.
    """

    def __init__(self, folder: Path, format: str) -> None:
        self.folder, self.format = folder, format
        self._file = folder / "book.json"
        self._notes: dict[str, Json] = {}
        if self._file.exists():
            try:
                self._notes = dict(json.loads(self._file.read_text(encoding="utf-8")))
            except (TypeError, ValueError):
                raise ClientError(
                    f"{self._file} cannot be read; without it, all begins anew"
                ) from None

    def note(self, part: Part, state: str | None, **more: str) -> None:
        """Notes where a part is; safe once this returns."""
        if state is None:
            self._notes.pop(part.key, None)
        else:
            self._notes[part.key] = {"part": part.name, "state": state, **more}
        write(self._file, json.dumps(self._notes, indent=1).encode())

    def state(self, part: Part) -> str | None:
        """Where a part is."""
        return self._notes.get(part.key, {}).get("state")

    def job_id(self, part: Part) -> str:
        """The job of a part that is running."""
        return str(self._notes[part.key]["job"])

    def keep(self, part: Part, audio: bytes) -> None:
        """Keeps what a part sounds like."""
        write(self._sound(part), audio)
        self.note(part, "done")

    def is_done(self, part: Part) -> bool:
        """Whether the part's sound is there."""
        return self.state(part) == "done" and self._sound(part).exists()

    def join(self, chapter: Chapter, parts: list[Part]) -> Path:
        """Writes a chapter's file; those of its parts are kept, for the next time."""
        sounds = [self._sound(part).read_bytes() for part in parts]
        file = self.folder / f"{chapter.name}.{self.format}"
        write(file, join(sounds, self.format))
        return file

    def _sound(self, part: Part) -> Path:
        return self.folder / "parts" / f"{part.name}-{part.key}.{self.format}"


class Book:
    """The chapters' parts on their way, only so many at once."""

    def __init__(
        self, chapters: list[Chapter], ledger: Ledger, server: Endpoint, arguments: Arguments
    ) -> None:
        self.parts = {chapter: parts_of(chapter, arguments) for chapter in chapters}
        self.done: dict[Chapter, Path] = {}
        self._ledger, self._server, self._arguments = ledger, server, arguments
        self._gate = asyncio.Semaphore(arguments.concurrency)
        self._unknown = 0  # in a row
        self._denied: Denied | None = None

    async def speak(self, bar: tqdm[Any]) -> None:
        """Has every part spoken that is not done; `done` has the chapters that are complete."""
        parts = [part for some in self.parts.values() for part in some]
        under_way = [part for part in parts if self._ledger.state(part) == "running"]
        others = [part for part in parts if part not in under_way]
        bar.total = len(parts)
        # First what the server has already: it does not keep it for long.
        for some in (under_way, others):
            await asyncio.gather(*(self._one(part, bar) for part in some))
            if self._denied is not None:
                raise self._denied

    async def _one(self, part: Part, bar: tqdm[Any]) -> None:
        try:
            if not self._ledger.is_done(part):
                await self._ask(part)
        except Denied as error:
            self._denied = error  # the same holds for all others
            return
        except ClientError as error:
            bar.write(f"failed: {part.name}: {error}", file=sys.stderr)
            return
        bar.update()
        parts = self.parts[part.chapter]
        if part.chapter not in self.done and all(map(self._ledger.is_done, parts)):
            self.done[part.chapter] = self._ledger.join(part.chapter, parts)
            bar.write(f"done: {self.done[part.chapter]}", file=sys.stderr)

    async def _ask(self, part: Part) -> None:
        if self._ledger.state(part) == "running":
            try:
                return await self._fetch(part)
            except JobGone:
                self._ledger.note(part, None)  # it was done, and nobody came for it in time
        async with self._gate:
            await self._submit(part)
            await self._fetch(part)
        return None

    async def _submit(self, part: Part) -> None:
        if self._ledger.state(part) == "sending" and not self._arguments.resubmit:
            raise OutcomeUnknown("it was sent before, and may have been accepted; see --resubmit")
        if self._denied is not None:
            raise self._denied
        if self._unknown >= MOST_UNKNOWN:
            raise ClientError(f"not sent, after {self._unknown} jobs of which no answer came")
        self._ledger.note(part, "sending")
        try:
            job_id = await self._server.submit(part.given, self._arguments.timeout)
        except OutcomeUnknown:
            self._unknown += 1
            raise
        except ClientError:
            self._ledger.note(part, None)
            raise
        self._unknown = 0
        self._ledger.note(part, "running", job=job_id)

    async def _fetch(self, part: Part) -> None:
        job_id = self._ledger.job_id(part)
        waiting = self._server.wait(job_id, self._arguments.poll, lambda _state: None)
        try:
            output = await within(self._arguments.timeout, waiting)
            audio = await self._server.audio(output)
        except JobGone:
            raise
        except JobFailed:
            self._ledger.note(part, None)
            raise
        self._ledger.keep(part, audio)


async def main() -> int:
    """The script; returns its exit status."""
    arguments = parse()
    chapters = read_book(arguments.book)
    with alone(arguments.output):
        ledger = Ledger(arguments.output, arguments.format)
        async with endpoint() as server:
            book = Book(chapters, ledger, server, arguments)
            try:
                with tqdm(unit="part") as bar:
                    await book.speak(bar)
            except asyncio.CancelledError:
                say("what was sent goes on; the same command fetches it, within 30 minutes")
                raise
    say(f"{len(book.done)} of {len(chapters)} chapters are done")
    if len(book.done) == len(chapters):
        return 0
    say("the same command tries again what is missing")
    return 1


def parts_of(chapter: Chapter, arguments: Arguments) -> list[Part]:
    """A chapter's jobs, in their order."""
    found = []
    for number, text in enumerate(cut(chapter.text, arguments.part), start=1):
        given, name = job_input(arguments, text, arguments.format), f"{chapter.name}.{number:02d}"
        told = json.dumps([name, given], sort_keys=True).encode()
        found.append(Part(chapter, name, given, hashlib.sha256(told).hexdigest()[:16]))
    return found


def write(file: Path, data: bytes) -> None:
    """Writes a file whole, or not at all."""
    new = file.with_name(f"{file.name}.new")
    with new.open("wb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())
    new.replace(file)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second script out of the folder; where the system can lock files."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with (folder / "book.lock").open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClientError(f"another book.py works in {folder}") from None
        yield


def parse() -> Arguments:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Speaks a book, one sound file a chapter.")
    parser.add_argument("book", type=Path, help='a folder of .txt files, or a file with "# " lines')
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder for the files")
    parser.add_argument("--voice", default="narrator_warm", help="a voice of the library")
    parser.add_argument("--format", default="mp3", choices=FORMATS)
    parser.add_argument("--concurrency", type=int, default=4, help="jobs at once")
    parser.add_argument(
        "--part", type=int, default=4000, help="characters of a job; wav has room for about 1000"
    )
    parser.add_argument(
        "--resubmit", action="store_true", help="send again what may have been accepted before"
    )
    add_job_arguments(parser, timeout_s=1800, poll_s=2)
    arguments = parser.parse_args()
    if not 200 <= arguments.part <= MOST_CHARACTERS:
        parser.error(f"--part must be 200 to {MOST_CHARACTERS}")
    if arguments.concurrency < 1:
        parser.error("--concurrency must be 1 or more")
    return arguments


if __name__ == "__main__":
    sys.exit(run(main()))

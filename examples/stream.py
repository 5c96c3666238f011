"""Speaks a text on a streaming endpoint, and writes the sound while the rest is being spoken.

    pip install httpx
    export RUNPOD_ENDPOINT_ID=… RUNPOD_API_KEY=…      (RUNPOD_BASE_URL: another server)
    python examples/stream.py "The tide is out." --voice narrator_warm -o tide.mp3
    python examples/stream.py - -o - --format mp3 < page.txt | ffplay -autoexit -nodisp -

The endpoint's workers need RUNPOD_HANDLER_MODE=stream. Pieces come numbered; one that is lost on
the way is taken from the job's final output, if that holds the audio and a file is written (what a
player has been sent cannot be taken back). Ctrl-C, a timeout and a player that is closed cancel the
job on the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from client import FINAL, ClientError, Endpoint, Json, output_of
from terminal import (
    add_job_arguments,
    endpoint,
    format_of,
    job,
    job_input,
    run,
    say,
    text_of,
    within,
)


class Sound:
    """Writes pieces as they come, in order and each once; knows whether one is missing."""

    def __init__(self, file: BinaryIO) -> None:
        self.summary: Json | None = None  # the last item, which has no audio
        self._file, self._started = file, time.monotonic()
        self._broken = False  # a piece is missing; those after it are not written
        self._pieces, self._end, self._bytes = 0, 0.0, 0

    @property
    def complete(self) -> bool:
        """Whether everything is written that there is."""
        counted = self.summary is not None and self.summary["pieces"] == self._pieces
        return counted and not self._broken

    def take(self, item: Any) -> None:
        """Takes the next item of the stream."""
        if not isinstance(item, dict):
            return
        if "pieces" in item:
            self.summary = item
        elif "audio" in item and item["index"] >= self._pieces:  # else it came before
            # Of a job that was begun anew, on another worker, the pieces may be others.
            fits = item["index"] == self._pieces and abs(item["start"] - self._end) < 0.01
            self._broken = self._broken or not fits
            if not self._broken:
                self._pieces, self._end = item["index"] + 1, item["end"]
                self.write(base64.b64decode(item["audio"]))

    def rewrite(self, items: list[Any]) -> None:
        """Writes the whole file again, from the job's final output."""
        if not (self._file.seekable() and items and items[-1].get("aggregated")):
            raise ClientError(
                f"a piece was lost on the way, and cannot be had again; {self._end:.2f} s before "
                "it were written"
            )
        self._file.seek(0)
        self._file.truncate()
        self._pieces, self._end, self._broken = 0, 0.0, False
        for item in items:
            self.take(item)

    def give_length(self) -> None:
        """Writes the length into a WAV, which began without one as a broadcast does."""
        if not self._file.seekable():
            return
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        header = self._file.read(44)
        if header[:4] == b"RIFF" and header[36:40] == b"data":
            for place, length in ((4, size - 8), (40, size - 44)):
                self._file.seek(place)
                self._file.write(length.to_bytes(4, "little"))

    def write(self, data: bytes) -> None:
        """Writes sound, and tells when the first came."""
        if data and not self._bytes:
            say(f"first sound after {time.monotonic() - self._started:.2f} s")
        self._bytes += len(data)
        self._file.write(data)
        self._file.flush()


async def main() -> int:
    """The script; returns its exit status."""
    arguments = parse()
    given = job_input(
        arguments, text_of(arguments), arguments.format or format_of(arguments.output)
    )
    async with endpoint() as server:
        with opened(arguments.output) as file:
            sound = Sound(file)
            async with job(server, given, arguments.timeout) as job_id:
                say(f"job {job_id}")
                await within(arguments.timeout, listen(server, job_id, sound, arguments.poll))
            await finish(server, job_id, sound)
    if sound.summary is not None:
        say(f"{sound.summary['duration']:.2f} s of sound, seed {sound.summary['seed']}")
        for warning in sound.summary["warnings"]:
            say(f"warning: {warning}")
    return 0


async def listen(server: Endpoint, job_id: str, sound: Sound, poll_s: float) -> None:
    """Writes a job's audio as it comes, until the job is over."""
    while True:
        state = await server.ask(f"/stream/{job_id}")
        items = state.get("stream") or []
        for item in items:
            sound.take(item.get("output"))
        if state.get("status") in FINAL and not items:
            return
        await asyncio.sleep(poll_s)


async def finish(server: Endpoint, job_id: str, sound: Sound) -> None:
    """Makes sure of the job's end, and that everything is written."""
    if not sound.complete:
        output = output_of(await server.ask(f"/status/{job_id}"))  # raises, if the job has failed
        if isinstance(output, dict):
            say("the endpoint does not stream (RUNPOD_HANDLER_MODE=stream): all came at once")
            sound.write(await server.audio(output))
            return
        sound.rewrite(output or [])
    sound.give_length()


def opened(name: str) -> BinaryIO:
    """The file to write; for `-`, standard output, which a player may close."""
    return open(1, "wb", closefd=False) if name == "-" else Path(name).open("w+b")


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Speaks a text and writes the sound as it comes.")
    parser.add_argument("text", help="what to say; - reads standard input")
    parser.add_argument("-o", "--output", required=True, help="the file; - is standard output")
    parser.add_argument("--format", help="of the sound; without it, the file's ending says it")
    parser.add_argument("--voice", help="a voice of the library")
    add_job_arguments(parser, timeout_s=1800, poll_s=0.5)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(main()))

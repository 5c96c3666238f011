"""What the scripts here share: the environment, their arguments, Ctrl-C, and errors in one line."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from client import BASE_URL, ClientError, Endpoint, JobFailed, Json, OutcomeUnknown

CANCEL_S = 15.0  # that a cancellation may take


def say(line: str) -> None:
    """Writes to standard error; standard output may be sound."""
    print(line, file=sys.stderr, flush=True)


def endpoint() -> Endpoint:
    """The endpoint that the environment names."""
    names = ("RUNPOD_ENDPOINT_ID", "RUNPOD_API_KEY")
    endpoint_id, key = (os.environ.get(name, "").strip() for name in names)
    if not endpoint_id or not key:
        raise ClientError(f"{' and '.join(names)} must be set in the environment")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientError("RUNPOD_API_KEY has characters that no key has")
    base_url = os.environ.get("RUNPOD_BASE_URL", "").strip() or BASE_URL
    if not base_url.startswith(("https://", "http://")):
        raise ClientError("RUNPOD_BASE_URL must begin with https:// or http://")
    return Endpoint(endpoint_id, key, base_url)


def add_job_arguments(parser: argparse.ArgumentParser, timeout_s: float, poll_s: float) -> None:
    """The arguments that every script has."""
    parser.add_argument("--seed", type=int, help="same seed, same speech; -1 draws one")
    parser.add_argument("--max-tokens", type=int, help="frames of a chunk, 86 a second")
    parser.add_argument("--timeout", type=float, default=timeout_s, help="seconds for a job")
    parser.add_argument("--poll", type=float, default=poll_s, help="seconds between two questions")


def job_input(arguments: argparse.Namespace, text: str, format: str) -> Json:
    """A job's `input`; what was not given is left to the worker."""
    return {
        "text": text,
        "output_format": format,
        **({} if arguments.voice is None else {"voice_id": arguments.voice}),
        **({} if arguments.seed is None else {"seed": arguments.seed}),
        **({} if arguments.max_tokens is None else {"max_tokens": arguments.max_tokens}),
    }


def text_of(arguments: argparse.Namespace) -> str:
    """The text to speak: the argument itself, or standard input for `-`."""
    return sys.stdin.read() if arguments.text == "-" else str(arguments.text)


def format_of(file: str) -> str:
    """The format that a file's name asks for; the worker knows which there are."""
    suffix = Path(file).suffix[1:].lower()
    if not suffix:
        raise ClientError(f"{file} has no ending, such as .mp3, that says what it is to be")
    return suffix


def check_folder(file: str) -> None:
    """Sees to it that nothing is asked for that could not be written."""
    if not Path(file).parent.is_dir():
        raise ClientError(f"there is no folder {Path(file).parent}")


@asynccontextmanager
async def job(endpoint: Endpoint, given: Json, timeout_s: float) -> AsyncIterator[str]:
    """A job, by its id; cancelled where the block is left early: an error, a timeout, Ctrl-C."""
    try:
        job_id = await endpoint.submit(given, timeout_s)
    except asyncio.CancelledError:
        raise OutcomeUnknown("stopped while the job was sent: it may have been accepted") from None
    try:
        yield job_id
    except JobFailed:  # nothing is left to cancel
        raise
    except BaseException:
        await _cancel(endpoint, job_id)
        raise


async def _cancel(endpoint: Endpoint, job_id: str) -> None:
    try:
        answer = await asyncio.wait_for(endpoint.ask(f"/cancel/{job_id}", {}), CANCEL_S)
        say(f"asked to cancel job {job_id}; it is {answer.get('status')}")
    except (ClientError, asyncio.TimeoutError):
        say(f"job {job_id} could not be cancelled, and goes on until its time is up")


async def within(timeout_s: float, work: Coroutine[Any, Any, Any]) -> Any:
    """What comes of some work, if it comes in time."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except asyncio.TimeoutError:  # before Python 3.11, not the built-in one
        raise ClientError(f"the job was not done within {timeout_s:g} s") from None


def run(main: Coroutine[Any, Any, int]) -> int:
    """Runs a script; what may be expected to fail becomes one line."""
    try:
        return asyncio.run(main)
    except (ClientError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130

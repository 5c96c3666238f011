"""Answers that are too large, too slow or none at all."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator

import pytest

from tests.remote.fakes import HERE, RECORDING, Get, Host, Page, chunked, page, refused, stalled
from worker.errors import JobTimeout

# Sizes


def test_a_recording_of_just_the_limit_is_taken(get: Get, host: Host) -> None:
    host.pages["/chunked"] = chunked([RECORDING])
    for path in ("/voice.wav", "/chunked"):
        assert get(path, max_bytes=len(RECORDING)) == RECORDING


def test_a_length_over_the_limit_is_refused_before_anything_is_read(get: Get, host: Host) -> None:
    def play() -> Iterator[bytes | None]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 20000001\r\n\r\n"
        yield None

    host.pages["/large"] = play
    message = refused(get, "/large")
    assert "the recording has more than 20000000 bytes (20 MB), the limit" in message
    assert host.left.wait(5)


def test_a_body_without_a_length_is_refused_when_it_passes_the_limit(get: Get, host: Host) -> None:
    sent = 0

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield bytes(10_000)

    def unframed() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        yield from pieces()

    host.pages["/chunked"], host.pages["/unframed"] = chunked(pieces()), unframed
    for path in ("/chunked", "/unframed"):
        assert "more than 100000 bytes (0.1 MB)" in refused(get, path, max_bytes=100_000)
    assert sent < 50_000_000  # it is not read on


def test_a_compressed_recording_is_refused_and_not_unpacked(get: Get, host: Host) -> None:
    host.pages["/bomb"] = page(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
    assert "sends the recording compressed" in refused(get, "/bomb")
    host.pages["/plain"] = page(RECORDING, Content_Encoding="identity")
    assert get("/plain") == RECORDING


# Time


def silent() -> Iterator[None]:
    yield None


def trickling() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    while True:
        yield b"x"
        time.sleep(0.02)


@pytest.mark.parametrize("play", [stalled, silent, trickling])
def test_a_host_that_takes_its_time_is_given_up(get: Get, host: Host, play: Page) -> None:
    host.pages["/slow"] = play
    started = time.monotonic()
    assert "the download took longer than 0.3 s" in refused(get, "/slow", timeout_s=0.3)
    assert time.monotonic() - started < 2


def test_the_limit_is_of_all_redirects_together(get: Get, host: Host) -> None:
    def slow_redirect() -> Iterator[bytes]:
        time.sleep(0.15)
        yield b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /again\r\n\r\n"

    host.pages["/again"] = slow_redirect
    assert "took longer than 0.3 s" in refused(get, "/again", timeout_s=0.3)


def test_a_resolver_that_takes_its_time_is_given_up(get: Get) -> None:
    async def asleep(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return [HERE]

    assert "took longer than 0.2 s" in refused(get, "/voice.wav", timeout_s=0.2, resolve=asleep)


def test_a_job_s_own_deadline_ends_the_download_as_it_ends_everything(get: Get, host: Host) -> None:
    host.pages["/slow"] = stalled
    for within_s in (0.2, 0.0, -1.0):
        with pytest.raises(JobTimeout, match="within the time it was given"):
            get("/slow", within_s=within_s)
    assert "took longer than 0.2 s" in refused(get, "/slow", timeout_s=0.2, within_s=60)


# Answers that are none


@pytest.mark.parametrize("status", ["404 Not Found", "206 Partial Content", "500 a", "304 b"])
def test_any_status_but_200_is_refused_without_repeating_the_body(
    get: Get, host: Host, status: str
) -> None:
    host.pages["/x"] = page(b"" if status[:3] == "304" else b"internal words", status)
    message = refused(get, "/x")
    assert message == f"reference_audio_url: the host answers with status {status[:3]}, not 200"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nRIFF",  # and no more
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nRIFF",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nRIFF",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
)
def test_a_host_that_does_not_speak_http_is_refused(get: Get, host: Host, answer: bytes) -> None:
    host.pages["/x"] = lambda: [answer]
    assert refused(get, "/x") == "reference_audio_url: the download broke off"


def test_an_empty_answer_is_refused(get: Get, host: Host) -> None:
    host.pages["/x"] = page(b"")
    assert refused(get, "/x") == "reference_audio_url: the host sends nothing"

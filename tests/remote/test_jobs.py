"""Jobs whose recording lies elsewhere."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.remote.fakes import Host, fetcher, page, stalled
from worker.delivery import FittingDelivery
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.errors import InvalidInput, InvalidReference, JobTimeout
from worker.schema import JobInput, parse_job
from worker.service import Service
from worker.settings import GenerationSettings


@pytest.fixture
def recording(voice_folder: Path) -> bytes:
    return (voice_folder / "narrator_deep" / "audio.flac").read_bytes()


@pytest.fixture
def online(service: Service, host: Host, certificate: Path) -> Service:
    """The service, for which the test's host is the public internet."""
    remote = fetcher(host, certificate, timeout_s=5.0)
    return Service(
        service._engine, service._codec, service.voices, FittingDelivery(), service.model,
        remote=remote,
    )  # fmt: skip


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    sequences: list[Sequence] = []
    submit = EngineLoop.submit

    def spy(loop: EngineLoop, sequence: Sequence) -> Future[Sequence]:
        sequences.append(sequence)
        return submit(loop, sequence)

    monkeypatch.setattr(EngineLoop, "submit", spy)
    return sequences


def job(service: Service, **fields: Any) -> JobInput:
    transcript = service.voices.get("narrator_deep").transcript
    fields = {"text": "[S1] Hello there.", "seed": 5, "max_tokens": 12, **fields}
    return parse_job({"reference_text": transcript, **fields}, GenerationSettings())


def test_a_clone_by_address_is_the_clone_of_the_recording_sent_along(
    online: Service, host: Host, recording: bytes, submitted: list[Sequence]
) -> None:
    host.pages["/deep.flac"] = page(recording, Content_Type="text/html")  # nobody looks at it
    sent = job(online, reference_audio=base64.b64encode(recording).decode())
    named = job(online, reference_audio_url=host.url("/deep.flac"))
    answers = [asyncio.run(online.run(each, "job")) for each in (sent, named)]
    one, other = submitted
    assert torch.equal(one.prompt, other.prompt) and len(one.prompt) > 86
    assert one.codes is not None and other.codes is not None
    assert torch.equal(one.codes, other.codes)
    assert answers[0]["audio"] == answers[1]["audio"]
    assert answers[0]["warnings"] == answers[1]["warnings"]


def test_a_clone_by_address_can_be_streamed(online: Service, host: Host, recording: bytes) -> None:
    host.pages["/deep.flac"] = page(recording)

    async def listen() -> list[Any]:
        named = job(online, reference_audio_url=host.url("/deep.flac"))
        return [item async for item in online.stream(named, "job")]

    assert len(asyncio.run(listen())) >= 2


def test_what_is_fetched_and_is_no_recording_is_refused_by_its_content(
    online: Service, host: Host, submitted: list[Sequence]
) -> None:
    host.pages["/x.wav"] = page(b"<html>private words</html>", Content_Type="audio/wav")
    with pytest.raises(InvalidReference, match="is not audio that can be read") as caught:
        asyncio.run(online.run(job(online, reference_audio_url=host.url("/x.wav")), "job"))
    assert "private" not in caught.value.message
    assert not submitted


def test_a_job_that_is_cancelled_leaves_the_host_at_once(online: Service, host: Host) -> None:
    host.pages["/slow"] = stalled

    async def cancel() -> None:
        task = asyncio.create_task(
            online.run(job(online, reference_audio_url=host.url("/slow")), "job")
        )
        await asyncio.to_thread(host.asked.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(host.left.wait, 2)

    asyncio.run(cancel())


def test_a_job_s_time_includes_the_download(online: Service, host: Host) -> None:
    host.pages["/slow"] = stalled
    slow = job(online, reference_audio_url=host.url("/slow"))
    with pytest.raises(JobTimeout):
        asyncio.run(online.run(slow, "job", timeout_s=0.3))


def test_a_worker_as_it_starts_fetches_from_public_hosts_only(service: Service) -> None:
    for url in ("https://127.0.0.1/x.wav", "https://localhost/x.wav"):
        with pytest.raises(InvalidReference, match="the host has no public address"):
            asyncio.run(service.run(job(service, reference_audio_url=url), "job"))


def test_a_service_that_fetches_nothing_says_so(service: Service) -> None:
    offline = Service(
        service._engine, service._codec, service.voices, FittingDelivery(), service.model
    )
    with pytest.raises(InvalidInput, match="reference_audio_url is turned off on this worker"):
        asyncio.run(offline.run(job(service, reference_audio_url="https://a.test/x"), "job"))

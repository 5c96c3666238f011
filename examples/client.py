"""A client of one RunPod endpoint: submit, wait, cancel, fetch. Needs httpx; copy it freely.

Questions are asked again, with growing pauses, after 429, 5xx, and connections that fail. `/run` is
no question: the queue cannot tell a job that was sent twice from two jobs. It is sent again only
where surely nothing was accepted: no connection came about, or the answer was 429. Where the answer
was lost, or is a 5xx, the job may be under way, and `OutcomeUnknown` leaves it to you.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

BASE_URL = "https://api.runpod.ai/v2"
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
PATIENCE_S = 90.0  # for one question, with all its attempts
Json = dict[str, Any]


class ClientError(Exception):
    """Something that happens; its text is one line for people, and never holds the key."""


class Denied(ClientError):
    """The key or the endpoint is wrong: every other request would fail as well."""


class OutcomeUnknown(ClientError):
    """A job was sent, and whether it was accepted is not known."""


class JobFailed(ClientError):
    """The job has ended without a result."""


class JobGone(JobFailed):
    """The server does not know the job any more: results are kept for 30 minutes."""


class _Passing(ClientError):
    refused, pause_s = False, 0.0  # refused: surely nothing was done


class Endpoint:
    """One endpoint; to be entered with `async with`."""

    def __init__(self, endpoint_id: str, api_key: str, base_url: str = BASE_URL) -> None:
        self.url, self.patience_s = f"{base_url.rstrip('/')}/{endpoint_id}", PATIENCE_S
        self._key = {"Authorization": f"Bearer {api_key}"}
        # No connection is kept: of one that is dead by now, nobody knows what it has still carried.
        self._http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def submit(self, given: Json, timeout_s: float) -> str:
        """Queues a job that may run for `timeout_s`; returns its id."""
        body = {"input": given, "policy": {"executionTimeout": round(1000 * max(timeout_s, 5))}}
        try:
            answer = _object(await self._patiently(f"{self.url}/run", body))
            return str(answer["id"])
        except JobGone:
            raise Denied(f"the server knows no endpoint {self.url} (status 404)") from None
        except KeyError:
            raise OutcomeUnknown("the job may have been accepted: the answer has no id") from None
        except _Passing as problem:
            if problem.refused:
                raise
            raise OutcomeUnknown(f"the job may have been accepted: {problem}") from None

    async def ask(self, path: str, body: Json | None = None) -> Json:
        """GETs `/status/ID` or `/stream/ID`; with `{}` as the body, POSTs `/cancel/ID`."""
        return _object(await self._patiently(self.url + path, body))

    async def wait(self, job_id: str, poll_s: float, told: Callable[[Json], None]) -> Any:
        """The output of a job, once it is completed; `told` hears every status before."""
        while (state := await self.ask(f"/status/{job_id}")).get("status") not in FINAL:
            told(state)
            await asyncio.sleep(poll_s)
        return output_of(state)

    async def audio(self, output: Any) -> bytes:
        """The file that an output holds, or says where to find."""
        output = output if isinstance(output, dict) else {}
        if "audio" in output:
            return base64.b64decode(output["audio"])
        if "audio_url" not in output:
            raise JobFailed(f"the output has no audio; key in a bucket: {output.get('audio_key')}")
        return (await self._patiently(output["audio_url"])).content

    async def _patiently(self, url: str, body: Json | None = None) -> httpx.Response:
        end, pause_s = time.monotonic() + self.patience_s, 0.5
        while True:
            try:
                return await self._once(url, body)
            except _Passing as problem:
                wait_s = max(problem.pause_s, pause_s * random.uniform(0.75, 1.25))
                lost = url.endswith("/run") and not problem.refused
                if lost or time.monotonic() + wait_s > end:
                    raise
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, 8.0)

    async def _once(self, url: str, body: Json | None) -> httpx.Response:
        key = self._key if url.startswith(f"{self.url}/") else None  # other servers do not get it
        try:
            method = "GET" if body is None else "POST"
            reply = await self._http.request(method, url, json=body, headers=key)
        except httpx.HTTPError as error:
            passing = _Passing(f"the server does not answer ({type(error).__name__})")
            passing.refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            raise passing from None
        status, after = reply.status_code, reply.headers.get("Retry-After", "")
        if status == 429 or status >= 500:
            passing = _Passing(f"the server answers with status {status}")
            passing.refused, passing.pause_s = status == 429, float(after) if after.isdigit() else 0
            raise passing
        if status in (401, 403) and key is not None:
            raise Denied(f"access is refused (status {status})")
        if status in (401, 403, 404):  # the address of a file in a bucket is good for some time
            raise JobGone(f"the job or its file is not there, or not any more (status {status})")
        if not reply.is_success:
            raise ClientError(f"the request was refused: status {status}, {reply.text[:200]!r}")
        return reply


def output_of(state: Json) -> Any:
    """The output of a job that is over; raises `JobFailed` if it has none."""
    if state["status"] == "COMPLETED":
        return state.get("output")
    reason = " ".join(str(state.get("error") or "no reason was given").split())
    raise JobFailed(f"the job ended as {state['status']}: {reason[:500]}")


def _object(reply: httpx.Response) -> Json:
    try:
        return dict(reply.json())
    except (TypeError, ValueError):
        raise _Passing("the server answers, and not in JSON") from None

"""RunPod's API, as a worker and a client see it: what the tests and the examples talk to.

    with ControlPlane() as plane:
        subprocess.Popen([sys.executable, "handler.py"], env={**plane.environment(), …})
        job_id = plane.submit({"text": "Hello."})
        (job,) = plane.wait_for(job_id)

It serves on a port of this machine, in a thread of its own. What it is to do wrong is put into
`faults`; what came of workers is in `arrivals`, with the time. Times are `time.monotonic()`, which
on Linux all processes share.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import web

from tests.end_to_end.platform_queue import FINAL, Job, Json, Platform

Result = TypeVar("Result")

ENDPOINT = "e"
MB = 1_000_000
MAX_RUN = 10 * MB  # of a request
MAX_PIECE = MB
MAX_RESULT = 20 * MB

Fault = str  # "500", "400", "413", "drop", or "delay:SECONDS"


@dataclass(frozen=True)
class Arrival:
    """A request of a worker, and how it was answered: a status, or `drop`."""

    at: float
    kind: str  # job-take, job-done, job-stream or job-stop
    worker: str
    job: str | None  # or several, with commas
    body: Any
    answered: str


class ControlPlane:
    """The HTTP server, and what it remembers."""

    def __init__(self, poll_s: float = 2.0, max_result: int = MAX_RESULT) -> None:
        """Prepares a server.

        Args:
            poll_s: for how long a request for jobs, or for stop orders, is held.
            max_result: bytes of a result above which it is refused with 413.
        """
        self.platform, self.max_result = Platform(poll_s), max_result
        self.arrivals: list[Arrival] = []
        self.pings: list[tuple[float, str | None]] = []
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)  # by kind of request
        self.fault_for: Callable[[str, str | None, Any], Fault | None] = lambda *_: None
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        # A request that its sender gives up must take no job along: hence the cancellation.
        self._runner = web.AppRunner(
            self._app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.2
        )

    def __enter__(self) -> ControlPlane:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def jobs(self) -> dict[str, Job]:
        """All that were ever queued, by id."""
        return self.platform.jobs

    def environment(self, worker: str = "worker-1") -> dict[str, str]:
        """What RunPod sets for a worker."""
        one = "$RUNPOD_POD_ID/$ID?gpu=x"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=x",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/{one}",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/{one}",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID",
            "RUNPOD_AI_API_KEY": "key-that-nobody-may-see",
            "RUNPOD_POD_ID": worker,
            "RUNPOD_POD_HOSTNAME": f"{worker}-host",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    # What a test does

    def submit(self, given: Any, job_id: str | None = None, **beside: Any) -> str:
        """Queues a job, as POST /run does; `beside` stands beside `input`."""
        return self._do(self.platform.queue({"input": given, **beside}, job_id)).id

    def cancel(self, job_id: str) -> None:
        """Cancels a job, as POST /cancel does."""
        self._do(self.platform.cancel(job_id))

    def again(self, job_id: str) -> None:
        """Queues a job once more, as the platform does where it lost sight of a worker."""
        self._do(self.platform.requeue(job_id))

    def resume(self) -> None:
        """Hands out jobs again, after `platform.paused` was set."""
        self._do(self.platform.resume())

    def wait_until(self, there: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
        """Waits until something is true, and returns it."""
        end = time.monotonic() + timeout_s
        while not (found := there()):
            if time.monotonic() > end:
                raise TimeoutError(f"{what or 'it'} did not come in {timeout_s:.0f} s")
            time.sleep(0.01)
        return found

    def wait_for(self, *job_ids: str, timeout_s: float = 60.0) -> list[Job]:
        """The jobs, once they are done with."""
        jobs = [self.jobs[job_id] for job_id in job_ids]
        self.wait_until(lambda: all(job.status in FINAL for job in jobs), timeout_s, "their end")
        return jobs

    def posts(self, job_id: str, kind: str = "job-done") -> list[Arrival]:
        """What came of a job, in order."""
        return [each for each in list(self.arrivals) if (each.kind, each.job) == (kind, job_id)]

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # What a worker asks

    async def _job_take(self, request: web.Request) -> web.StreamResponse:
        worker, wanted = request.match_info["worker"], int(request.query.get("batch_size", 1))
        fault = self._next_fault("job-take", None, None)
        if fault is not None:
            return await self._at_fault(request, fault, "job-take", None)
        taken = [{"id": job.id, **job.request} for job in await self.platform.take(worker, wanted)]
        self._note("job-take", worker, ",".join(job["id"] for job in taken) or None, None, "200")
        if not taken:
            return web.Response(status=204)
        return web.json_response(taken if "batch_size" in request.query else taken[0])

    async def _job_stop(self, request: web.Request) -> web.StreamResponse:
        worker = request.match_info["worker"]
        orders = await self.platform.stop_orders(worker)
        if not orders:
            return web.Response(status=204)
        self._note("job-stop", worker, ",".join(orders), None, "200")
        return web.json_response({"jobsToStop": orders})

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        self.pings.append((time.monotonic(), request.query.get("job_id")))
        return web.json_response({})

    async def _job_done(self, request: web.Request) -> web.StreamResponse:
        return await self._posted(request, "job-done", self.max_result, Job.take_result)

    async def _job_stream(self, request: web.Request) -> web.StreamResponse:
        def keep(job: Job, body: Json) -> None:
            job.pieces.append(body.get("output"))

        return await self._posted(request, "job-stream", MAX_PIECE, keep)

    async def _posted(
        self, request: web.Request, kind: str, limit: int, use: Callable[[Job, Json], None]
    ) -> web.StreamResponse:
        job_id, data = request.match_info["job"], await request.read()
        body = json.loads(data)
        fault = "413" if len(data) > limit else self._next_fault(kind, job_id, body)
        if fault is not None:
            answer = await self._at_fault(request, fault, kind, body)
            if not fault.startswith("delay"):
                return answer
        else:
            self._note(kind, request.match_info["worker"], job_id, body, "200")
        use(self.jobs[job_id], body)
        return web.json_response({})

    # What a client asks

    async def _run(self, request: web.Request) -> web.StreamResponse:
        body = await self._request_of(request)
        if isinstance(body, web.Response):
            return body
        job = await self.platform.queue(body)
        return web.json_response({"id": job.id, "status": job.status})

    async def _run_sync(self, request: web.Request) -> web.StreamResponse:
        body = await self._request_of(request)
        if isinstance(body, web.Response):
            return body
        job = await self.platform.queue(body, sync=True)
        end = time.monotonic() + float(request.query.get("wait", 90_000)) / 1000
        while job.status not in FINAL and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return web.json_response(job.shown())

    async def _request_of(self, request: web.Request) -> Json | web.Response:
        data = await request.read()
        if len(data) > (MAX_RUN if request.path.endswith("/run") else MAX_RESULT):
            return web.json_response({"error": "the request is too large"}, status=400)
        body = json.loads(data)
        if not isinstance(body, dict) or "input" not in body:
            return web.json_response({"error": "input is missing"}, status=400)
        return body

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return self._told(request, Job.shown)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        def unread(job: Job) -> Json:
            new, job.read = job.pieces[job.read :], len(job.pieces)
            return {"status": job.status, "stream": [{"output": piece} for piece in new]}

        return self._told(request, unread)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["job"] in self.jobs:
            await self.platform.cancel(request.match_info["job"])
        return self._told(request, lambda job: {"id": job.id, "status": job.status})

    def _told(self, request: web.Request, told: Callable[[Job], Json]) -> web.Response:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return web.json_response({"error": "job not found"}, status=404)
        return web.json_response(told(job))

    # The server

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=64 * MB)
        routes = {
            "GET /job-take/{worker}": self._job_take,
            "GET /job-take-batch/{worker}": self._job_take,
            "GET /job-stop/{worker}": self._job_stop,
            "GET /ping/{worker}": self._ping,
            "POST /job-done/{worker}/{job}": self._job_done,
            "POST /job-stream/{worker}/{job}": self._job_stream,
            "POST /run": self._run,
            "POST /runsync": self._run_sync,
            "GET /status/{job}": self._status,
            "GET /stream/{job}": self._stream,
            "POST /cancel/{job}": self._cancel,
        }
        for route, answer in routes.items():
            method, path = route.split()
            app.router.add_route(method, f"/v2/{{endpoint}}{path}", answer)
        return app

    async def _start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v2/{ENDPOINT}"

    def _next_fault(self, kind: str, job_id: str | None, body: Any) -> Fault | None:
        planned = self.faults[kind]
        return planned.popleft() if planned else self.fault_for(kind, job_id, body)

    async def _at_fault(
        self, request: web.Request, fault: Fault, kind: str, body: Any
    ) -> web.StreamResponse:
        name, _, seconds = fault.partition(":")
        if name == "delay":
            await asyncio.sleep(float(seconds))
        job_id, worker = request.match_info.get("job"), request.match_info["worker"]
        self._note(kind, worker, job_id, body, "200" if name == "delay" else name)
        if name == "drop" and request.transport is not None:
            request.transport.close()
        return web.Response(status=int(name) if name.isdigit() else 200)

    def _note(self, kind: str, worker: str, job: str | None, body: Any, answered: str) -> None:
        self.arrivals.append(Arrival(time.monotonic(), kind, worker, job, body, answered))

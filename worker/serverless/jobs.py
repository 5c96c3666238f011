"""The two handlers: a job dict in; one answer, or the items of a stream, out.

A handler never raises but for a cancellation: of a raised exception the SDK sends traceback and
host name to the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from worker import openai
from worker.delivery.room import room_for
from worker.errors import InvalidInput
from worker.schema import JobInput, JobResult, parse_job
from worker.serverless.answers import Answer, failure, log_failure, postable, wears_out
from worker.serverless.flight import Flight
from worker.serverless.logs import current_job
from worker.serverless.progress import Progress
from worker.serverless.streaming import Stream
from worker.service import Service
from worker.settings import Settings

Job = dict[str, Any]


class Jobs:
    """What the handlers share: the service, and who else is at work."""

    def __init__(self, service: Service, settings: Settings, flight: Flight) -> None:
        self._service, self._flight = service, flight
        self._generation = settings.generation
        self._timeout_s = settings.generation.limits.timeout_s

    async def answer(self, job: Job) -> Answer:
        """Does a job; its answer is ready to be posted."""
        job_id = _begin(job)
        given = job.get("input")
        try:
            answer = await self._answer(job, job_id, given)
            return await asyncio.to_thread(postable, answer)
        except Exception as error:  # noqa: BLE001 - logged whole, and told to the client in part
            answer = _failed(error, given)
            if wears_out(error) and await self._flight.leave():
                answer["refresh_worker"] = True
            return answer

    async def items(self, job: Job, config: dict[str, Any]) -> AsyncGenerator[Answer, None]:
        """Does a job piece by piece.

        Args:
            job: as the SDK has it.
            config: the SDK's own; of a stream, it looks there for the order to refresh.

        Yields:
            Pieces, then the summary; or, at whatever point, an error.
        """
        job_id = _begin(job)
        given = job.get("input")
        try:
            if (models := self._models(given)) is not None:
                yield models
                return
            request = await asyncio.to_thread(self._parse, given)
            items = self._stream(request, job_id)
            self._flight.at_the_end(items.aclose)
            async for item in items:
                yield item
        except Exception as error:  # noqa: BLE001 - logged whole, and told to the client in part
            answer = _failed(error, given)
            if wears_out(error) and await self._flight.leave():
                config["refresh_worker"] = True
            # The SDK passes on nothing of the last item but its message.
            yield {name: value for name, value in answer.items() if name != "error"}
            yield answer

    async def _answer(self, job: Job, job_id: str, given: Any) -> Answer:
        if (models := self._models(given)) is not None:
            return models
        # In a thread: 20 MB of base64 would hold up the other jobs.
        request = await asyncio.to_thread(self._parse, given)
        async with Progress(job) as progress:
            answer = await self._service.run(
                request,
                job_id,
                on_chunk=progress,
                timeout_s=self._timeout_s,
                s3_config=job.get("s3Config"),
            )
        return openai.speech_answer(answer, given) if openai.is_openai(given) else answer

    async def _stream(self, request: JobInput, job_id: str) -> AsyncGenerator[Answer, None]:
        if request.output == "s3":
            raise InvalidInput("output is 's3', and this worker streams; valid are auto and base64")
        room = room_for(job_id)
        stream = Stream(request.output_format, self._service.sample_rate, room)
        pieces = self._service.stream(request, job_id, self._timeout_s)
        try:
            async for piece in pieces:
                if isinstance(piece, JobResult):
                    rest = await stream.rest()
                    if rest is not None:
                        yield rest
                        stream.posted()
                    yield stream.summary(piece)
                else:
                    yield await stream.piece(piece)
                    stream.posted()
        finally:
            await pieces.aclose()

    def _models(self, given: Any) -> Answer | None:
        """The answer to one who asks which models there are."""
        if openai.is_openai(given) and openai.route_of(given) == openai.MODELS:
            return openai.models_answer(self._service.model.name)
        return None

    def _parse(self, given: Any) -> JobInput:
        if openai.is_openai(given):
            given = openai.speech_input(given, self._service.model.name, self._voice_ids)
        return parse_job(given, self._generation)

    def _voice_ids(self) -> list[str]:
        return [voice.voice_id for voice in self._service.voices.list_voices()]


def _begin(job: Mapping[str, Any]) -> str:
    """The job's id; from here on the log's lines carry it."""
    job_id = str(job.get("id", "unnamed"))
    current_job.set(job_id)
    return job_id


def _failed(error: Exception, given: Any) -> Answer:
    log_failure(error)
    answer = failure(error)
    return openai.with_openai_error(answer) if openai.is_openai(given) else answer

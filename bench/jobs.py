"""Jobs from end to end through the service: how long they take, and how many at once.

    python -m bench.jobs --random-weights                       # full size, on one GPU
    DIA_MODEL=models/dia-tiny python -m bench.jobs --slots 8    # what batching brings on a CPU

In order, all after one job that does not count: a streamed job's time to its first audio; a short
job whole; 2,000 characters with a voice of the library, whole; the same short jobs one after
another and all at once; then Poisson arrivals of streamed jobs, at rates given as shares of what
the jobs at once came to. Everything is seeded: two runs do the same jobs at the same intervals.
A model that was never trained does not end a chunk either, so its chunks are stopped at the length
that they would have as speech.
Prints tables, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from bench.subject import parser_for, settings_for
from bench.table import finish, show, significant
from worker.pieces import Piece
from worker.schema import JobInput, parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.startup import resolve_device, start
from worker.text.duration import estimate_frames

SENTENCES = (
    "The harbor is quiet tonight, and all the boats wait for the wind to turn.",
    "She counted the lamps along the pier until the last of them went out.",
    "Nobody had told him that the ferry leaves an hour early in the winter.",
    "We kept the letters in a tin box under the stairs, tied with a red string.",
)
ARRIVALS_SEED = 7


@dataclass(frozen=True)
class Done:
    """One job, as whoever asked for it saw it; seconds."""

    first_audio_s: float  # from the request
    latency_s: float
    audio_s: float
    ended: float  # `time.perf_counter()`
    ahead: int = 0  # jobs under way when it came


def short_job(seed: int, frames: int | None) -> JobInput:
    """A job of one chunk."""
    text = SENTENCES[seed % len(SENTENCES)]
    return parse_job({"text": text, "seed": seed, "max_tokens": frames}, GenerationSettings())


def usual_frames(service: Service) -> int | None:
    """The limit of a chunk that keeps it to the length of speech, where the model does not."""
    return None if service._trained else estimate_frames(SENTENCES[0])


def long_job(options: argparse.Namespace) -> JobInput:
    """Many chunks with a voice of the library, which all of them continue."""
    once = " ".join(SENTENCES) + " "
    text = (once * (options.characters // len(once) + 1))[: options.characters]
    given = {"voice_id": options.voice, "max_tokens": options.frames}
    fields = {"text": text, "seed": 1, **given}
    return parse_job(fields, GenerationSettings())


async def streamed(service: Service, job: JobInput, ahead: int = 0) -> Done:
    """Does a job and notes when the first piece of its audio came."""
    began, first, samples = time.perf_counter(), 0.0, 0.0
    async for item in service.stream(job, "bench"):
        if isinstance(item, Piece):
            first = first or time.perf_counter() - began
            samples = item.end_s
    ended = time.perf_counter()
    return Done(first, ended - began, samples, ended, ahead)


async def whole(service: Service, job: JobInput) -> Done:
    """Does a job whose audio comes all at once."""
    began = time.perf_counter()
    result, _ = await service.speak(job)
    ended = time.perf_counter()
    return Done(ended - began, ended - began, result.duration, ended)


async def one_by_one(work: Callable[[JobInput], Awaitable[Done]], jobs: Iterable[JobInput]) -> Any:
    """Does jobs, each after the one before."""
    return [await work(job) for job in jobs]


async def at_once(work: Callable[[JobInput], Awaitable[Done]], jobs: Iterable[JobInput]) -> Any:
    """Does jobs side by side."""
    return await asyncio.gather(*map(work, jobs))


async def arriving(service: Service, jobs: list[JobInput], rate: float) -> list[Done]:
    """Streamed jobs that come at random, `rate` a second on average."""
    intervals = random.Random(ARRIVALS_SEED)
    under_way: set[asyncio.Task[Done]] = set()
    tasks = []
    for job in jobs:
        await asyncio.sleep(intervals.expovariate(rate))
        task = asyncio.create_task(streamed(service, job, len(under_way)))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        tasks.append(task)
    return await asyncio.gather(*tasks)


def alone(service: Service, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of job that has the worker to itself: the median run."""
    short = [short_job(seed, options.frames) for seed in range(options.repeats)]
    long = [long_job(options)]
    characters = f"{options.characters:,} characters"
    kinds = {
        "short, streamed": (partial(streamed, service), short),
        "short, whole": (partial(whole, service), short),
        f"{characters}, streamed": (partial(streamed, service), long),
        f"{characters}, whole": (partial(whole, service), long),
    }
    rows = []
    for name, (work, jobs) in kinds.items():
        runs = asyncio.run(one_by_one(work, jobs))
        latency, audio = (
            statistics.median(getattr(run, field) for run in runs)
            for field in ("latency_s", "audio_s")
        )
        rows.append(
            {
                "job": name,
                "first_audio_ms": significant(
                    1e3 * statistics.median(run.first_audio_s for run in runs)
                ),
                "latency_ms": significant(1e3 * latency),
                "audio_s": significant(audio),
                "times_realtime": significant(audio / latency),
            }
        )
    return rows


def together(service: Service, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same jobs one by one and at once: what sharing the engine's batch brings."""
    jobs = [short_job(seed, options.frames) for seed in range(options.together)]
    work = partial(whole, service)
    rows: list[dict[str, Any]] = []
    for at_a_time, way in ((1, one_by_one), (len(jobs), at_once)):
        began = time.perf_counter()
        runs = asyncio.run(way(work, jobs))
        took = time.perf_counter() - began
        audio = sum(run.audio_s for run in runs)
        rows.append(
            {
                "jobs": len(jobs),
                "at_a_time": at_a_time,
                "seconds": significant(took),
                "jobs_per_s": significant(len(jobs) / took),
                "times_realtime": significant(audio / took),
                "throughput_ratio": significant(rows[0]["seconds"] / took if rows else 1.0, 3),
            }
        )
    return rows


def under_load(service: Service, capacity: float, options: argparse.Namespace) -> list[Any]:
    """A row for each rate of arrivals.

    Args:
        service: does the jobs.
        capacity: jobs a second that count as a load of 1.
        options: the loads, and how many jobs come at each.
    """
    jobs = [short_job(seed, options.frames) for seed in range(options.arrivals)]
    rows = []
    for load in options.loads:
        began = time.perf_counter()
        runs = asyncio.run(arriving(service, jobs, load * capacity))
        span = max(run.ended for run in runs) - began
        latency, first = (
            sorted(1e3 * getattr(run, field) for run in runs)
            for field in ("latency_s", "first_audio_s")
        )
        rows.append(
            {
                "load": load,
                "jobs_per_s": significant(load * capacity),
                "jobs": len(runs),
                "latency_p50_ms": significant(quantile(latency, 0.5)),
                "latency_p95_ms": significant(quantile(latency, 0.95)),
                "first_audio_p50_ms": significant(quantile(first, 0.5)),
                "first_audio_p95_ms": significant(quantile(first, 0.95)),
                "times_realtime": significant(sum(run.audio_s for run in runs) / span),
                "mean_jobs_ahead": significant(statistics.fmean(run.ahead for run in runs)),
                "most_jobs_ahead": max(run.ahead for run in runs),
            }
        )
    return rows


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that is not exceeded by that share of them."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measures and prints."""
    parser = parser_for(__doc__)
    parser.add_argument("--slots", type=int, help="instead of as many as the device has room for")
    parser.add_argument("--repeats", type=int, default=5, help="of a short job")
    parser.add_argument("--together", type=int, default=8, help="jobs at once")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--arrivals", type=int, default=40, help="jobs at each load")
    parser.add_argument("--frames", type=int, help="of a chunk at most")
    parser.add_argument("--characters", type=int, default=2000, help="of the long job")
    parser.add_argument("--voice", default="narrator_warm", help="of the long job")
    options = parser.parse_args()
    settings = settings_for(options, options.slots)
    service = start(settings)
    options.frames = options.frames or usual_frames(service)
    asyncio.run(one_by_one(partial(streamed, service), [long_job(options)]))
    rows = alone(service, options)
    show(f"{service.model.name}, one job at a time", rows)
    batches = together(service, options)
    show("Short jobs, one by one and at once", batches)
    loads = under_load(service, batches[-1]["jobs_per_s"], options)
    show(f"Poisson arrivals; load 1 is {batches[-1]['jobs_per_s']} jobs a second", loads)
    service.close()
    finish(
        "jobs",
        resolve_device(settings.model.device),
        getattr(torch, service.model.dtype),
        model=service.model.name,
        slots=service.slots,
        alone=rows,
        together=batches,
        under_load=loads,
    )


if __name__ == "__main__":
    main()

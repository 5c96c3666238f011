"""Hundreds of jobs through a worker process, with all that goes wrong on a platform.

    python -m bench.soak --model models/dia-tiny --jobs 300
    python -m bench.soak --model models/dia-tiny --jobs 1000    # memory after 50 and after 500 jobs

A queue like RunPod's (`tests/end_to_end/control_plane.py`) hands the jobs to `handler.py` as the
platform starts it, on the CPU. Of the jobs, 5 % have bad input and 5 % are cancelled while they
run; of the results, 5 % are refused at first, with 500 or a dropped connection. Half-way the worker
gets SIGTERM, and a second one takes the rest. Then a job of a minute is cancelled.

Prints a table, and as its last line the same as JSON. Exits with 1 where a job was lost:
accepted = results posted + cancelled, exactly.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.table import finish, show
from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.platform_queue import FINAL, Job
from tests.end_to_end.process import WorkerProcess, environment, slots_free_ms
from worker.settings import REPOSITORY_ROOT

BAD = CANCELLED = FAILED_POSTS = 0.05  # of all jobs
EVERY = 50  # jobs; after so many a worker's memory is what it stays
JOB_S = 60.0
LEAVING = "no more jobs are taken"  # what a worker writes when it has heard that it is to stop
SENTENCE = "[S1] The harbor is quiet tonight, and all the boats wait for the wind. "
MINUTE = {"text": SENTENCE * 14, "max_tokens": 430}  # 5 s a chunk of an untrained model


class Soak:
    """One run: the queue, the workers, and what is to happen to which job."""

    def __init__(self, plane: ControlPlane, options: argparse.Namespace, folder: Path) -> None:
        self.plane, self.options, self.folder = plane, options, folder
        self.draw = random.Random(options.seed)
        self.to_cancel: set[str] = set()
        self.to_refuse: dict[str, str] = {}
        plane.fault_for = self._fault

    def start(self, name: str) -> WorkerProcess:
        """Starts a worker that takes as many jobs as it has slots."""
        variables = {
            **environment(self.options.model, self.options.voices, self.folder),
            **self.plane.environment(name),
            "RUNPOD_LOG_LEVEL": "INFO",
            "CONCURRENT_REQUESTS": str(self.options.concurrency),
            "ENGINE_SLOTS": str(self.options.concurrency),
        }
        return WorkerProcess(self.folder / name, variables)

    def submit(self) -> None:
        """Queues all jobs."""
        for index in range(self.options.jobs):
            given: dict[str, Any] = {"text": SENTENCE, "max_tokens": self.draw.randint(5, 30)}
            if self.draw.random() < BAD:
                given = {"text": SENTENCE, "temperature": -1}
            elif self.draw.random() < CANCELLED:
                given["max_tokens"] = 3000
                self.to_cancel.add(f"job-{index}")
            elif self.draw.random() < FAILED_POSTS:
                self.to_refuse[f"job-{index}"] = self.draw.choice(["500", "drop"])
            self.plane.submit(given, f"job-{index}")

    def work(self, until: int) -> None:
        """Cancels what is to be cancelled, until so many jobs are done with."""
        end = time.monotonic() + JOB_S + self.options.jobs
        while len(self.done()) < until:
            if time.monotonic() > end:
                left = [job.shown() for job in self.plane.jobs.values() if job.status not in FINAL]
                raise TimeoutError(f"{len(self.done())} of {until} jobs are done; left: {left[:9]}")
            for job in list(self.plane.jobs.values()):
                running = job.status == "IN_PROGRESS" and job.taken is not None
                if running and job.id in self.to_cancel and time.monotonic() - job.taken > 0.3:
                    self.plane.cancel(job.id)
            time.sleep(0.02)

    def remember(self, worker: WorkerProcess, until: int) -> list[dict[str, Any]]:
        """A worker's memory as its jobs are done."""
        step = min(EVERY, until // 2)
        rows = []
        for jobs in range(step, until + 1, step):
            self.work(jobs)
            memory = worker.usage.memory_info().rss
            rows.append({"jobs": jobs, "rss_mb": round(memory / 1e6, 1)})
        self.work(until)
        return rows

    def done(self) -> list[Job]:
        """Those that are done with."""
        return [job for job in list(self.plane.jobs.values()) if job.status in FINAL]

    def taken_by(self, name: str, after: float) -> int:
        """Jobs that a worker was given after a time."""
        return sum(
            len(each.job.split(","))
            for each in list(self.plane.arrivals)
            if (each.kind, each.worker) == ("job-take", name) and each.job and each.at > after
        )

    def _fault(self, kind: str, job_id: str | None, _body: Any) -> str | None:
        return self.to_refuse.pop(job_id or "", None) if kind == "job-done" else None


def idle_share(worker: WorkerProcess, seconds: float) -> float:
    """Of one core, while there is nothing to do."""

    def used() -> float:
        times = worker.usage.cpu_times()
        return float(times.user + times.system)

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


def run(soak: Soak) -> tuple[dict[str, Any], bool]:
    """Figures by name, and whether nothing was lost."""
    plane, options = soak.plane, soak.options
    first = soak.start("worker-1").wait_until_ready()
    second = None
    try:
        time.sleep(2)  # until the last of the start is over
        figures: dict[str, Any] = {"idle_core_share": round(idle_share(first, options.idle_s), 4)}
        began = time.monotonic()
        soak.submit()
        memory = soak.remember(first, options.jobs // 2)
        figures["rss_growth"] = round(memory[-1]["rss_mb"] / memory[0]["rss_mb"] - 1, 4)
        running = [job for job in plane.jobs.values() if job.status == "IN_PROGRESS"]
        told = time.monotonic()
        first.terminate()
        # Until it has heard, the platform may still answer the request for jobs that was open.
        plane.wait_until(lambda: LEAVING in first.log)
        heard = time.monotonic()
        second = soak.start("worker-2")
        soak.work(soak.options.jobs)
        figures |= {
            "running_at_sigterm": len(running),
            "exit_status": first.wait(JOB_S),
            "sigterm_heard_ms": round(1000 * (heard - told), 1),
            "taken_after_sigterm": soak.taken_by("worker-1", heard),
            "seconds": round(time.monotonic() - began, 1),
        }
        figures |= cancel_a_minute(soak, second)
        freed = [slots_free_ms(first, job_id) for job_id in soak.to_cancel]
        freed += [slots_free_ms(second, job_id) for job_id in soak.to_cancel]
        known = [each for each in freed if each is not None]
        figures["slots_free_ms_most"] = round(max(known, default=0.0), 1)
        second.terminate()
        figures["second_exit_status"] = second.wait(JOB_S)
    finally:
        first.end()
        if second is not None:
            second.end()
    figures["memory"] = memory
    return {**count(soak), **figures}, is_whole(count(soak), figures)


def cancel_a_minute(soak: Soak, worker: WorkerProcess) -> dict[str, Any]:
    """Cancels a job of a minute of speech once it is under way."""
    plane = soak.plane
    plane.submit(MINUTE, "job-of-a-minute")
    worker.wait_until_speaking("job-of-a-minute")
    plane.cancel("job-of-a-minute")
    taken = plane.wait_until(lambda: slots_free_ms(worker, "job-of-a-minute"), 20)
    return {"minute_slots_free_ms": round(taken, 1)}


def count(soak: Soak) -> dict[str, int]:
    """What became of the jobs."""
    jobs = list(soak.plane.jobs.values())
    cancelled = [job for job in jobs if job.status == "CANCELLED"]
    posted = [job for job in jobs if job.status in ("COMPLETED", "FAILED") and job.results]
    return {
        "accepted": len(jobs),
        "posted": len(posted),
        "cancelled": len(cancelled),
        "lost": len(jobs) - len(posted) - len(cancelled),
        "completed": sum(job.status == "COMPLETED" for job in jobs),
        "failed": sum(job.status == "FAILED" for job in jobs),
        "results_twice": sum(job.results > 1 for job in jobs),
        "posts_refused": sum(
            each.kind == "job-done" and each.answered != "200" for each in soak.plane.arrivals
        ),
    }


def is_whole(counted: dict[str, int], figures: dict[str, Any]) -> bool:
    """Whether nothing was lost, and both workers ended well."""
    ends = figures["exit_status"], figures["second_exit_status"]
    return counted["lost"] == 0 and ends == (0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.soak", description=__doc__)
    parser.add_argument("--model", type=Path, default=REPOSITORY_ROOT / "models" / "dia-tiny")
    parser.add_argument("--voices", type=Path, default=REPOSITORY_ROOT / "voices")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=8, help="slots, and jobs at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="40 jobs, and a short look at idleness")
    options = parser.parse_args()
    options.idle_s = 2.0 if options.fast else 20.0
    if options.fast:
        options.jobs = min(options.jobs, 40)
    with tempfile.TemporaryDirectory() as folder, ControlPlane() as plane:
        figures, whole = run(Soak(plane, options, Path(folder)))
    memory = figures.pop("memory")
    rows = [{"figure": name, "value": value} for name, value in figures.items()]
    show("soak", rows)
    show("memory", memory)
    figures |= {"model": options.model.name, "whole": whole, "memory": memory}
    finish("soak", torch.device("cpu"), torch.float32, **figures)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()

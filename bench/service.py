"""The service's own share of a job: all of its time but the engine's and the codec's.

    python -m bench.service --model models/dia-tiny --runs 5

Speaks a text of about one chunk and one of about ten, as wav, and notes when the engine has a
sequence of the job, when the codec decodes, and how long each stage of the service takes. The
service's own share is the time in which neither engine nor codec is at work. A chunk is held to
the 5 s that its words take, since a model that is not trained does not end. Prints a table of
medians in ms, and as its last line the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import worker.service as stages
from worker.config import load_settings
from worker.engine.sequence import Sequence
from worker.schema import parse_job
from worker.service import Service
from worker.settings import GenerationSettings
from worker.startup import start

SENTENCE = "The harbor is quiet tonight, and all the boats wait for the wind to turn at dawn."
TEXTS = {
    "1 chunk": SENTENCE,
    "10 chunks": " ".join(f"[S{1 + at % 2}] {SENTENCE}" for at in range(10)),
}
CHUNK_FRAMES = 430  # 5 s
LIMIT_MS = 10.0
DEVICES = "engine", "codec"  # the rest is the service's own
OWN = "voice and script", "wav", "delivery"  # and handing over between threads


class Clock:
    """Notes from when to when what was at work; in any thread."""

    def __init__(self) -> None:
        self.spans: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls noted."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spans[stage].append((began, time.perf_counter()))

        return call

    def timed_submit(
        self, submit: Callable[[Sequence], Future[Sequence]]
    ) -> Callable[[Sequence], Future[Sequence]]:
        """`EngineLoop.submit`, noted from the call to the answer."""

        def call(sequence: Sequence) -> Future[Sequence]:
            began = time.perf_counter()
            future = submit(sequence)
            future.add_done_callback(
                lambda _: self.spans["engine"].append((began, time.perf_counter()))
            )
            return future

        return call

    def busy_ms(self, *names: str) -> float:
        """Milliseconds in which at least one of the stages was at work."""
        total, until = 0.0, 0.0
        for began, ended in sorted(span for name in names for span in self.spans[name]):
            total += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return 1e3 * total


def watch(service: Service) -> Clock:
    """Sets clocks on a service's engine, codec and stages."""
    clock = Clock()
    engine: Any = service._engine
    codec: Any = service._codec
    delivery: Any = service._delivery
    watched: Any = service
    module: Any = stages
    engine.submit = clock.timed_submit(engine.submit)
    codec.decode = clock.timed("codec", codec.decode)
    watched._order = clock.timed("voice and script", watched._order)
    module.encode_audio = clock.timed("wav", module.encode_audio)
    delivery.deliver = clock.timed("delivery", delivery.deliver)
    return clock


async def measure(service: Service, clock: Clock, text: str, runs: int) -> dict[str, float]:
    """Median milliseconds of each stage of a job, after one that does not count."""
    fields = {"text": text, "seed": 1, "output_format": "wav", "max_tokens": CHUNK_FRAMES}
    job = parse_job(fields, GenerationSettings())
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(runs + 1):
        clock.spans.clear()
        began = time.perf_counter()
        answer = await service.run(job, "bench")
        total = 1e3 * (time.perf_counter() - began)
        if run:
            for name in (*DEVICES, *OWN):
                found[name].append(clock.busy_ms(name))
            found["handing over"].append(total - clock.busy_ms(*DEVICES, *OWN))
            found["own share"].append(total - clock.busy_ms(*DEVICES))
            found["in all"].append(total)
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    medians["own share, least"] = round(min(found["own share"]), 2)  # on a machine with other work
    return {**medians, "audio_s": answer["duration"], "chunks": answer["chunks_processed"]}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/dia-tiny")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    service = start(load_settings({"DIA_MODEL": options.model}))
    clock = watch(service)
    found = {
        name: asyncio.run(measure(service, clock, text, options.runs))
        for name, text in TEXTS.items()
    }
    service.close()
    print(f"{'stage, ms median of ' + str(options.runs):<26}" + "".join(f"{n:>12}" for n in found))
    for stage in next(iter(found.values())):
        print(f"{stage:<26}" + "".join(f"{column[stage]:>12.2f}" for column in found.values()))
    kept = all(column["own share"] < LIMIT_MS for column in found.values())
    print(json.dumps({**found, "limit_ms": LIMIT_MS, "kept": kept}))


if __name__ == "__main__":
    main()

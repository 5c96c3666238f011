"""An engine that plays what a test wrote for it, in threads of its own, so that a test decides when
which frames are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import cycle
from types import SimpleNamespace
from typing import Any, cast

from tests.models import random_codes
from worker.codec.codec import Codec
from worker.delivery import FittingDelivery
from worker.engine.sequence import Sequence
from worker.errors import JobCancelled
from worker.service import Service


def opened() -> threading.Event:
    """A gate that holds nobody up."""
    gate = threading.Event()
    gate.set()
    return gate


@dataclass
class Part:
    """How one sequence goes."""

    frames: int
    ended: bool = True
    error: Exception | None = None  # instead of an end
    pause: int = 0  # frames after which it waits at the gate
    gate: threading.Event = field(default_factory=opened)


class PlayedEngine:
    """Stands in for `EngineLoop`. Frames come in pieces of `sizes`, and the seed says which."""

    def __init__(
        self, config: Any, part: Callable[[Sequence], Part], sizes: tuple[int, ...] = (8,)
    ) -> None:
        self.engine = SimpleNamespace(config=config)
        self.submitted: list[Sequence] = []
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []  # which would have stopped a real engine
        self._part, self._sizes = part, sizes

    def submit(self, sequence: Sequence) -> Future[Sequence]:
        self.submitted.append(sequence)
        future: Future[Sequence] = Future()
        future.set_running_or_notify_cancel()
        part = self._part(sequence)
        thread = threading.Thread(target=self._play, args=(sequence, part, future), daemon=True)
        self.threads.append(thread)
        thread.start()
        return future

    def join(self) -> None:
        """Waits for all threads."""
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive()

    def _play(self, sequence: Sequence, part: Part, future: Future[Sequence]) -> None:
        try:
            if not self._frames(sequence, part):
                future.set_exception(JobCancelled("cancelled"))
            elif part.error is not None:
                future.set_exception(part.error)
            else:
                future.set_result(sequence)
        except BaseException as error:
            self.errors.append(error)
            raise

    def _frames(self, sequence: Sequence, part: Part) -> bool:
        """Whether it was played to its end."""
        codes = random_codes(part.frames, 9, sequence.params.seed)
        at = 0
        for size in cycle(self._sizes):
            if at >= part.pause:
                while not part.gate.wait(0.01):
                    if sequence.cancelled.is_set():
                        return False
            if sequence.cancelled.is_set():
                return False
            if at >= part.frames:
                break
            new = codes[at : at + size]
            at += size
            if sequence.on_codes is not None:
                sequence.on_codes(new)
        sequence.codes, sequence.frames, sequence.ended = codes, part.frames, part.ended
        return True


def played_service(service: Service, engine: PlayedEngine, codec: Codec) -> Service:
    """That service with another codec, and an engine that only plays."""
    return Service(cast(Any, engine), codec, service.voices, FittingDelivery(), service.model)

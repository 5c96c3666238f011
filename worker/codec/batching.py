"""Decodes asked for by several threads, done by one.

Knows requests and who answers them. One thread, because each that decodes on a CPU keeps memory of
its own for the next time; in batches, because a GPU decodes several rows in the time of one. What
comes while one batch is decoded is the next, so a lone request never waits for company.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

DecodeBatch = Callable[[Sequence[Tensor]], list[Tensor]]
Request = tuple[Tensor, "Future[Tensor]"]


class DecodeQueue:
    """Calls `decode_batch` in a thread of its own.

    Args:
        decode_batch: rows of codes [T, K] to their waveforms.
        together: whether all rows that wait are one batch; else each is, in order of arrival.
    """

    def __init__(self, decode_batch: DecodeBatch, together: bool) -> None:
        self._decode_batch, self._together = decode_batch, together
        self._waiting: deque[Request] = deque()
        self._changed = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="codec")

    def decode(self, codes: Tensor) -> Tensor:
        """The waveform of one row; blocks the calling thread.

        Raises:
            Exception: whatever `decode_batch` raises for this row alone.
        """
        future: Future[Tensor] = Future()
        with self._changed:
            self._waiting.append((codes, future))
        self._thread.submit(self._decode_next)
        return future.result()

    def _decode_next(self) -> None:
        if batch := self._next_batch():  # else it was decoded with the one before
            self._answer(batch)

    def _next_batch(self) -> list[Request]:
        with self._changed:
            count = len(self._waiting) if self._together else min(1, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _answer(self, batch: list[Request]) -> None:
        try:
            waveforms = self._decode_batch([codes for codes, _ in batch])
        except Exception as error:  # noqa: BLE001 — it belongs to whoever asked
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:  # one row's fault is not its neighbours'
                self._answer([one])
            return
        for (_, future), waveform in zip(batch, waveforms, strict=True):
            future.set_result(waveform)

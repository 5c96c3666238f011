"""Decodes asked for by several threads, joined into batches.

Knows requests and who answers them. What comes while one batch is decoded is the next batch, so a
lone request never waits for company.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from torch import Tensor

DecodeBatch = Callable[[Sequence[Tensor]], list[Tensor]]


class DecodeQueue:
    """Calls `decode_batch` by one thread at a time, each time with all that has come meanwhile.

    Args:
        decode_batch: rows of codes [T, K] to their waveforms.
    """

    def __init__(self, decode_batch: DecodeBatch) -> None:
        self._decode_batch = decode_batch
        self._waiting: list[tuple[Tensor, Future[Tensor]]] = []
        self._changed = threading.Lock()
        self._turn = threading.Lock()

    def decode(self, codes: Tensor) -> Tensor:
        """The waveform of one row; blocks the calling thread.

        Raises:
            Exception: whatever `decode_batch` raises for this row alone.
        """
        future: Future[Tensor] = Future()
        with self._changed:
            self._waiting.append((codes, future))
        with self._turn:  # whoever had it before may have decoded this row too
            self._decode_waiting()
        return future.result()

    def _decode_waiting(self) -> None:
        with self._changed:
            batch, self._waiting = self._waiting, []
        if batch:
            self._answer(batch)

    def _answer(self, batch: list[tuple[Tensor, Future[Tensor]]]) -> None:
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

"""Decodes asked for at the same time, joined into batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from worker.codec.batching import DecodeQueue


class Decoder:
    """Notes its batches; each waits until the test lets it go."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.busy = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, rows: Sequence[Tensor]) -> list[Tensor]:
        self.batches.append(len(rows))
        self.busy.release()
        assert self.go_on.acquire(timeout=10)
        if any(len(row) == 13 for row in rows):
            raise ValueError("this row is no good")
        return [row[:, 0] * 2 for row in rows]


def row(length: int) -> Tensor:
    return torch.full((length, 9), length)


def queued(queue: DecodeQueue, count: int) -> None:
    """Waits until so many requests wait."""
    for _ in range(1000):
        with queue._changed:
            if len(queue._waiting) == count:
                return
        threading.Event().wait(0.01)
    pytest.fail("the requests never came")


def test_what_is_asked_for_during_a_decode_is_decoded_together_next() -> None:
    decoder = Decoder()
    queue = DecodeQueue(decoder, together=True)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(queue.decode, row(1))
        assert decoder.busy.acquire(timeout=10)
        later = [threads.submit(queue.decode, row(length)) for length in (2, 3, 4)]
        queued(queue, 3)
        decoder.go_on.release(2)
        assert first.result().tolist() == [2]
        assert [each.result().tolist() for each in later] == [[4] * 2, [6] * 3, [8] * 4]
    assert decoder.batches == [1, 3]


def test_a_lone_request_does_not_wait_for_company() -> None:
    decoder = Decoder()
    decoder.go_on.release(2)
    queue = DecodeQueue(decoder, together=True)
    assert queue.decode(row(5)).tolist() == [10] * 5
    assert queue.decode(row(1)).tolist() == [2]
    assert decoder.batches == [1, 1]


def test_a_row_that_fails_fails_alone() -> None:
    decoder = Decoder()
    queue = DecodeQueue(decoder, together=True)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(queue.decode, row(1))
        assert decoder.busy.acquire(timeout=10)
        good, bad = threads.submit(queue.decode, row(2)), threads.submit(queue.decode, row(13))
        queued(queue, 2)
        decoder.go_on.release(9)
        assert first.result().tolist() == [2]
        assert good.result().tolist() == [4, 4]
        with pytest.raises(ValueError, match="no good"):
            bad.result()
    assert decoder.batches == [1, 2, 1, 1]


def test_where_a_batch_saves_nothing_each_row_is_answered_as_soon_as_it_is_done() -> None:
    decoder = Decoder()
    queue = DecodeQueue(decoder, together=False)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(queue.decode, row(1))
        assert decoder.busy.acquire(timeout=10)
        later = [threads.submit(queue.decode, row(length)) for length in (2, 3)]
        queued(queue, 2)
        decoder.go_on.release(3)
        assert first.result().tolist() == [2]
        assert [each.result().tolist() for each in later] == [[4] * 2, [6] * 3]
    assert decoder.batches == [1, 1, 1]


def test_however_many_threads_ask_one_decodes() -> None:
    seen: set[int] = set()

    def decode(rows: Sequence[Tensor]) -> list[Tensor]:
        seen.add(threading.get_ident())
        return list(rows)

    queue = DecodeQueue(decode, together=False)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(queue.decode, [row(length) for length in range(1, 40)]))
    assert len(seen) == 1

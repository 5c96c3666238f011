"""What `stream.py` does when pieces are lost or come twice, and when the job fails."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tests.end_to_end.examples.unreliable import Ended, Unreliable, fail, start, tone
from tests.end_to_end.platform_queue import Job


def submitted(queue: Unreliable) -> Job:
    """The first job, once it is there."""
    queue.wait_until(lambda: queue.jobs)
    return next(iter(queue.jobs.values()))


def pieces(aggregated: bool = True, count: int = 3) -> list[dict[str, Any]]:
    """What a streaming worker yields for as many pieces of 0.1 s, the header in the first."""
    data = tone(0.1 * count)
    size = (len(data) - 44) // count
    parts = [data[44 + size * index : 44 + size * (index + 1)] for index in range(count)]
    found: list[dict[str, Any]] = [
        {
            "index": index,
            "start": round(0.1 * index, 3),
            "end": round(0.1 * index + 0.1, 3),
            "audio": base64.b64encode((data[:44] if index == 0 else b"") + part).decode(),
        }
        for index, part in enumerate(parts)
    ]
    summary = {"pieces": count, "aggregated": aggregated, "duration": 0.3, "seed": 1}
    return [*found, {**summary, "warnings": []}]


def finish(job: Job, items: list[dict[str, Any]]) -> None:
    whole = items[-1]["aggregated"]
    kept = [{name: item[name] for name in item if whole or name != "audio"} for item in items]
    job.output, job.status = kept, "COMPLETED"


def test_a_piece_that_is_lost_on_the_way_is_fetched_at_the_end(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces.append(items[0])
    queue.wait_until(lambda: job.read == 1)
    queue.wrong["stream"].append("lose")
    job.pieces.append(items[1])
    queue.wait_until(lambda: job.read == 2)
    job.pieces += items[2:]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 0, ended.told
    assert file.read_bytes() == tone(0.3)


def test_a_piece_that_is_lost_for_good_is_told_and_what_came_is_kept(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces(aggregated=False)
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], items[2], items[3]]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 1
    assert "error: a piece was lost on the way, and cannot be had again; 0.10 s" in ended.told
    assert file.read_bytes() == base64.b64decode(items[0]["audio"])


def test_a_piece_that_comes_twice_is_written_once(queue: Unreliable, tmp_path: Path) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], items[0], items[1], items[0], *items[1:]]
    finish(job, items)
    ended = Ended(process)
    assert ended.status == 0, ended.told
    assert file.read_bytes() == tone(0.3)


def test_a_stream_that_fails_keeps_what_came_and_says_why(
    queue: Unreliable, tmp_path: Path
) -> None:
    file, items = tmp_path / "a.wav", pieces()
    process = start(queue, "stream.py", "Hello.", "-o", file)
    job = submitted(queue)
    job.pieces += [items[0], {"error_code": "out_of_memory", "retryable": True}]
    fail(job)
    ended = Ended(process)
    assert ended.status == 1
    assert "error: the job ended as FAILED: out_of_memory" in ended.told
    assert file.read_bytes() == base64.b64decode(items[0]["audio"])

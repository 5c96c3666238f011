"""How much JSON an answer may be, and how much one is."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from worker.errors import EngineError

logger = logging.getLogger(__name__)

SYNC_PREFIX = "sync-"  # how the ids of jobs begin that came by /runsync


@dataclass(frozen=True)
class Room:
    """What an answer may have; in bytes of JSON."""

    name: str
    limit: int

    def __str__(self) -> str:
        return f"an answer to {self.name} has room for {megabytes(self.limit)}"


# RunPod documents 10 and 20 MB, does not say of how many bytes, counts what it puts around the
# answer as well, and loses what is too large without a word. 19.5 of 20 MB have failed in
# practice. Hence a tenth is left free: four times what was too little then.
RUN = Room("/run", 9_000_000)
RUNSYNC = Room("/runsync", 18_000_000)


def room_for(job_id: str) -> Room:
    """What the answer to a job may have; a job of unknown origin gets the smaller room."""
    return RUNSYNC if job_id.startswith(SYNC_PREFIX) else RUN


def encoded_size(answer: object) -> int:
    """Bytes of an answer as JSON, at most: posted with its letters unescaped, it may have fewer.

    Raises:
        EngineError: if it holds what JSON does not know: bytes, NaN, infinities.
    """
    try:
        return len(json.dumps(answer, allow_nan=False))
    except (TypeError, ValueError) as error:
        logger.exception("an answer cannot be written as JSON")
        raise EngineError("the answer holds a value that cannot be written as JSON") from error


def base64_size(data: bytes) -> int:
    """Bytes of data in base64."""
    return 4 * -(-len(data) // 3)


def megabytes(size: int) -> str:
    """Bytes in words."""
    return f"{size / 1e6:.1f} MB"

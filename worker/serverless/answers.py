"""What leaves the worker: errors in the shape that RunPod reports, and only what can be posted.

RunPod reports a job as FAILED where `error` is text at the top level; of anything else there it
makes a COMPLETED job without output. An answer that is not JSON is logged by the SDK and never
posted, so that the job would run for ever.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from worker.errors import EngineBroken, OutOfMemory, WorkerError

logger = logging.getLogger(__name__)

Answer = dict[str, Any]

INTERNAL = "internal_error"


def failure(error: Exception) -> Answer:
    """An exception as the answer to its job; of those that are not ours it says nothing."""
    if isinstance(error, WorkerError):
        return _failure(" ".join(str(error).split()), error.code, error.retryable)
    return internal("the worker failed on this job; its log has the cause")


def internal(message: str) -> Answer:
    """The answer where the worker itself is to blame."""
    return _failure(f"{INTERNAL}: {message}", INTERNAL, retryable=True)


def wears_out(error: Exception) -> bool:
    """Whether the worker should be replaced after this.

    The engine has tried again by itself when it runs out of memory; what is left then, another
    process may not have. A broken engine never comes back.
    """
    return isinstance(error, EngineBroken | OutOfMemory)


def log_failure(error: Exception) -> None:
    """Writes down everything that the answer leaves out."""
    if isinstance(error, WorkerError):
        cause = error.__cause__ or error
        detail = cause if error.retryable else None  # what was asked for wrongly has no other cause
        logger.info("refused or failed: %s", error, exc_info=detail)
    else:
        logger.error("failed", exc_info=error)


def postable(answer: Answer) -> Answer:
    """The answer, or an error where the SDK could not post it: bytes, NaN, half a surrogate."""
    audio = answer.get("audio")
    # Megabytes of base64 are JSON as they are; to write them here would hold up the other jobs.
    checked = {**answer, "audio": ""} if isinstance(audio, str) and audio.isascii() else answer
    try:
        json.dumps(checked, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # of which UnicodeEncodeError is one
        logger.error("the answer is not JSON: %s", _safely(error))
        return internal("the result cannot be written as JSON; the worker's log has the cause")
    return answer


def _failure(message: str, code: str, retryable: bool) -> Answer:
    return {"error": message, "error_code": code, "retryable": retryable}


def _safely(error: Exception) -> str:
    return str(error).encode("utf-8", "backslashreplace").decode()

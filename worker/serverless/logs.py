"""The log of the worker: every line says which job it belongs to.

The job is known by its context, so it also stands on lines of the threads that work for a job; the
engine's thread works for all of them, and its lines have `-`.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

current_job: ContextVar[str] = ContextVar("current_job", default="-")

FORMAT = "%(asctime)s %(levelname)s %(name)s [%(job)s]: %(message)s"


class JobFilter(logging.Filter):
    """Gives each record the id of the job in whose context it was made, as `job`."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.job = current_job.get()
        return True


def set_up_log() -> None:
    """Sends the log to standard error, from the level INFO on; replaces what was set up before."""
    handler = logging.StreamHandler()
    handler.addFilter(JobFilter())
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=[handler], force=True)

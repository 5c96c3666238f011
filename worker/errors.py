"""Every exception that the worker raises on purpose.

WorkerError
├── JobError                the job cannot be done as it was asked; asking again will not help
│   ├── InvalidInput        a field has a value that is not allowed
│   ├── UnknownVoice        `voice_id` names no voice of the library
│   ├── InvalidReference    a reference recording or its transcript cannot serve as a voice
│   └── JobCancelled        whoever asked for the job has taken it back
├── SetupError              the worker cannot start
│   ├── InvalidConfig       a setting is unknown, or has a value that is not allowed
│   ├── WeightsNotFound     no weights in any of the places where they may lie
│   └── InvalidCheckpoint   weights were found, and are not those of the model asked for
└── EngineError             generation failed; the same job may succeed elsewhere

Messages name the field or the place, what was given, and what is valid. They are read by whoever
sent the job, so they hold no tracebacks and no secrets.
"""

from __future__ import annotations

__all__ = [
    "EngineError",
    "InvalidCheckpoint",
    "InvalidConfig",
    "InvalidInput",
    "InvalidReference",
    "JobCancelled",
    "JobError",
    "SetupError",
    "UnknownVoice",
    "WeightsNotFound",
    "WorkerError",
]


class WorkerError(Exception):
    """Base of all: a stable `code` for programs, a message for people."""

    code = "worker_error"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class JobError(WorkerError):
    """The job cannot be done as it was asked."""

    code = "invalid_job"


class InvalidInput(JobError):
    """A field of the job has a value that is not allowed."""

    code = "invalid_input"


class UnknownVoice(JobError):
    """`voice_id` names no voice of the library."""

    code = "unknown_voice"


class InvalidReference(JobError):
    """A reference recording or its transcript cannot serve as a voice."""

    code = "invalid_reference"


class JobCancelled(JobError):
    """Whoever asked for the job has taken it back."""

    code = "cancelled"


class SetupError(WorkerError):
    """The worker cannot start."""

    code = "setup_error"


class InvalidConfig(SetupError):
    """A setting is unknown, or has a value that is not allowed."""

    code = "invalid_config"


class WeightsNotFound(SetupError):
    """No weights in any of the places where they may lie."""

    code = "weights_not_found"


class InvalidCheckpoint(SetupError):
    """Weights were found, and are not those of the model asked for."""

    code = "invalid_checkpoint"


class EngineError(WorkerError):
    """Generation failed; the same job may succeed on another worker."""

    code = "engine_error"
    retryable = True

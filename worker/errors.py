"""Every exception that the worker raises on purpose.

WorkerError
├── JobError                the job cannot be done as it was asked
│   ├── InvalidInput        a field has a value that is not allowed
│   ├── UnknownVoice        `voice_id` names no voice of the library
│   ├── InvalidReference    a reference recording or its transcript cannot serve as a voice
│   ├── ResultTooLarge      the audio is there, and more than an answer may hold
│   ├── JobCancelled        whoever asked for the job has taken it back
│   └── JobTimeout          the job was not done within the time it was given; may be asked again
├── SetupError              the worker cannot start
│   ├── InvalidConfig       a setting is unknown, or has a value that is not allowed
│   ├── DeviceUnfit         the device is there, and the model does not run on it
│   ├── WeightsNotFound     no weights in any of the places where they may lie
│   └── InvalidCheckpoint   weights were found, and are not those of the model asked for
├── UploadFailed            the audio is there, and could not be stored; may be asked again
│   └── UploadRefused       the store will not take it: wrong keys, or no such bucket
└── EngineError             generation failed; the same job may succeed elsewhere
    ├── OutOfMemory         the device had no room for what was generated at that moment
    └── EngineBroken        this process cannot generate any more, and must be replaced

`retryable` says whether the same job may succeed when it is asked for again: of job errors only a
`JobTimeout`, of set-up errors none, of uploads those that were not refused, of engine errors all.

Messages name the field or the place, what was given, and what is valid. They are read by whoever
sent the job, so they hold no tracebacks and no secrets.
"""

from __future__ import annotations

__all__ = [
    "DeviceUnfit",
    "EngineBroken",
    "EngineError",
    "InvalidCheckpoint",
    "InvalidConfig",
    "InvalidInput",
    "InvalidReference",
    "JobCancelled",
    "JobError",
    "JobTimeout",
    "OutOfMemory",
    "ResultTooLarge",
    "SetupError",
    "UnknownVoice",
    "UploadFailed",
    "UploadRefused",
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


class ResultTooLarge(JobError):
    """The audio is there, and more than an answer may hold."""

    code = "result_too_large"


class JobCancelled(JobError):
    """Whoever asked for the job has taken it back."""

    code = "cancelled"


class JobTimeout(JobError):
    """The job was not done within the time it was given; a less busy worker may do it."""

    code = "timeout"
    retryable = True


class SetupError(WorkerError):
    """The worker cannot start."""

    code = "setup_error"


class InvalidConfig(SetupError):
    """A setting is unknown, or has a value that is not allowed."""

    code = "invalid_config"


class DeviceUnfit(SetupError):
    """The device is there, and the model does not run on it."""

    code = "device_unfit"


class WeightsNotFound(SetupError):
    """No weights in any of the places where they may lie."""

    code = "weights_not_found"


class InvalidCheckpoint(SetupError):
    """Weights were found, and are not those of the model asked for."""

    code = "invalid_checkpoint"


class UploadFailed(WorkerError):
    """The audio is there, and could not be stored: no answer, or a passing trouble of the store."""

    code = "upload_failed"
    retryable = True


class UploadRefused(UploadFailed):
    """The store will not take the audio, however often it is asked."""

    code = "upload_refused"
    retryable = False


class EngineError(WorkerError):
    """Generation failed; the same job may succeed on another worker."""

    code = "engine_error"
    retryable = True


class OutOfMemory(EngineError):
    """The device had no room for what was generated at that moment; this worker goes on."""

    code = "out_of_memory"


class EngineBroken(EngineError):
    """This process cannot generate any more and must be replaced; every later job fails too."""

    code = "engine_broken"

"""What a job may say, and what it gets back.

Knows fields, types, ranges and which fields go together. The ranges themselves stand in
`worker.limits`, defaults in the settings.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from worker.errors import InvalidInput
from worker.limits import (
    CfgFilterTopK,
    CfgScale,
    ChunkSize,
    MaxTokens,
    Output,
    OutputFormat,
    Switch,
    Temperature,
    TopP,
    refusal,
    shown,
)
from worker.remote import TURNED_OFF, parse_url
from worker.settings import GenerationSettings

MAX_REFERENCE_BYTES = 20_000_000
NESTED = "generation_params"
RECORDINGS = ("reference_audio", "reference_audio_url")  # of which a clone has one
RANDOM_SEED = -1

VoiceMode = Literal["dialogue", "voice_library", "clone"]
JobSeed = Annotated[
    int,
    Field(
        strict=True,
        ge=RANDOM_SEED,
        le=2**32 - 1,
        description=f"a whole number from 0 to {2**32 - 1}, or -1 for one drawn at random",
    ),
]
JobText = Annotated[str, Field(strict=True, description="text")]


class JobInput(BaseModel):
    """One job, checked and complete: every field has its value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: JobText
    voice_mode: VoiceMode
    voice_id: JobText | None = None
    reference_audio: JobText | None = None  # base64
    reference_audio_url: JobText | None = None  # where the recording lies instead
    reference_text: JobText | None = None
    enable_chunking: Switch
    chunk_size: ChunkSize
    allow_multiple_speakers: Switch
    seed: JobSeed | None
    cfg_scale: CfgScale
    temperature: Temperature
    top_p: TopP
    cfg_filter_top_k: CfgFilterTopK
    max_tokens: MaxTokens | None
    output_format: OutputFormat
    output: Output = "auto"

    _given: frozenset[str] = PrivateAttr(default=frozenset())

    def names(self, field: str) -> bool:
        """Whether the job itself gave the field, and did not leave it to the settings."""
        return field in self._given

    @property
    def reference_bytes(self) -> bytes:
        """The decoded recording of a clone job that brought it."""
        return decode_reference(self.reference_audio or "")


class ChunkResult(BaseModel):
    """One generation of the job, in the order of the text."""

    text: str
    speaker: str  # S1, S2, or S1+S2 in the order of their first words
    start: float  # seconds in the finished audio
    end: float
    frames: int  # codec frames, 86.13 a second
    seed: int


class ModelInfo(BaseModel):
    """Which weights spoke; enough to make the result again."""

    name: str
    generation: str
    dtype: str
    fingerprint: str


class JobResult(BaseModel):
    """What a finished job says beside its audio."""

    job_id: str | None = None  # the platform's; a job from elsewhere has none
    format: str
    sample_rate: int  # Hz
    audio_length: int  # samples
    duration: float  # s
    generation_time: float  # s
    chunks_processed: int
    chunks: list[ChunkResult]
    seed: int
    voice_id: str | None
    model: ModelInfo
    warnings: list[str]


def parse_job(raw: Any, settings: GenerationSettings) -> JobInput:
    """Checks a job's `input`; fields left out, or null, get the settings' defaults.

    Raises:
        InvalidInput: naming each field at fault, what was given, and what is valid.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInput(f"input is {shown(raw)}; it must be an object with the field text")
    given = _flattened(raw)
    _check_text(given.get("text"), settings.limits.max_text_length)
    voice_mode = _voice_mode(given)
    values = {**settings.defaults.model_dump(), **given, "voice_mode": voice_mode}
    try:
        job = JobInput(**values)
    except ValidationError as error:
        raise InvalidInput("; ".join(_complaint(detail) for detail in error.errors())) from error
    job._given = frozenset(given)
    if job.reference_audio_url is not None:
        _check_remote(job.reference_audio_url, settings.limits.remote_references)
    elif voice_mode == "clone":
        decode_reference(job.reference_audio or "")
    return job


def decode_reference(encoded: str) -> bytes:
    """The bytes of a base64 recording, with or without a `data:` prefix.

    Raises:
        InvalidInput: if it is not base64, is empty, or has more than `MAX_REFERENCE_BYTES`.
    """
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    encoded = "".join(encoded.split())
    size = len(encoded) * 3 // 4 - encoded[-2:].count("=")
    if size > MAX_REFERENCE_BYTES:
        raise InvalidInput(
            f"reference_audio has {size} bytes; at most {MAX_REFERENCE_BYTES} "
            f"({MAX_REFERENCE_BYTES / 1e6:.0f} MB) are allowed"
        )
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"reference_audio is not base64: {error}") from error
    if not data:
        raise InvalidInput("reference_audio is empty; it must be a recording in base64")
    return data


def _flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields given, those of `generation_params` among them; null counts as not given."""
    nested = raw.get(NESTED)
    if nested is None:
        nested = {}
    if not isinstance(nested, Mapping):
        raise InvalidInput(f"{NESTED}: {shown(nested)} is not allowed; it must be an object")
    if NESTED in nested:
        raise InvalidInput(f"{NESTED} holds {NESTED}; it must hold the other fields only")
    outer = _known({name: value for name, value in raw.items() if name != NESTED})
    inner = _known(nested)
    for name in outer:
        if name in inner and not _same(outer[name], inner[name]):
            raise InvalidInput(
                f"{name} is given twice: {shown(outer[name])}, and {shown(inner[name])} "
                f"in {NESTED}; give it once"
            )
    return {**inner, **outer}


def _known(fields: Mapping[Any, Any]) -> dict[str, Any]:
    for name in fields:
        if name not in JobInput.model_fields:
            raise InvalidInput(_unknown(str(name)))
    return {name: value for name, value in fields.items() if value is not None}


def _same(one: Any, other: Any) -> bool:
    # 3 is 3.0, but True is not 1
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def _check_text(text: Any, longest: int) -> None:
    if text is None:
        raise InvalidInput("text is missing; it must be text to speak")
    if isinstance(text, str) and not 1 <= len(text) <= longest:
        found = f"{len(text)} characters" if text else "empty"
        raise InvalidInput(f"text is {found}; it must have 1 to {longest} characters")


def _check_remote(url: str, allowed: bool) -> None:
    if not allowed:
        raise InvalidInput(TURNED_OFF)
    parse_url(url)


def _voice_mode(given: Mapping[str, Any]) -> Any:
    """The mode asked for, or the one that the other fields mean; refuses what does not agree."""
    library = "voice_id" in given
    recordings = [name for name in RECORDINGS if name in given]
    clone = [name for name in (*RECORDINGS, "reference_text") if name in given]
    if library and clone:
        raise InvalidInput(
            f"voice_id and {clone[0]} are both given; give a voice of the library, or a "
            "recording to clone with its transcript"
        )
    if len(recordings) > 1:
        raise InvalidInput(f"{' and '.join(recordings)} are both given; give one of them")
    meant = "voice_library" if library else "clone" if clone else "dialogue"
    mode = given.get("voice_mode", meant)
    if mode == "clone":
        for name in (*(recordings or ["reference_audio"]), "reference_text"):
            if not given.get(name):
                raise InvalidInput(
                    f"{name} is missing; a clone needs reference_text and a recording, in "
                    "reference_audio or at reference_audio_url"
                )
    if mode == "voice_library" and not library:
        raise InvalidInput("voice_id is missing; voice_mode voice_library needs one")
    if mode in ("dialogue", "voice_library") and mode != meant:
        extra = "voice_id" if library else clone[0]
        raise InvalidInput(f"voice_mode is {mode!r} and {extra} is given; leave one of them out")
    return mode


def _complaint(detail: Any) -> str:
    name = str(detail["loc"][0])
    return refusal(name, detail["input"], JobInput.model_fields[name])


def _unknown(name: str) -> str:
    fields = [*JobInput.model_fields, NESTED]
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(fields)}"
    return f"{shown(name)}: no such field; {hint}"

"""What a voice is, and which ids and transcripts are valid.

Knows the limits of a voice prompt's text. Knows nothing of files, codecs or caches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from worker.audio.check import MAX_SECONDS
from worker.errors import InvalidInput, InvalidReference

MAX_TRANSCRIPT_BYTES = 512  # half of the model's text: the other half is for what is to be said
MAX_CHARACTERS_PER_S = 30.0  # English is read at 12 to 18; an auctioneer reaches 25
MIN_CHARACTERS_PER_S = 4.0  # below it, part of the recording is likely not in the transcript

_VOICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TAG = re.compile(r"\[S\d*\]", re.IGNORECASE)
_SPEAKERS = ("S1", "S2")


class CodecLike(Protocol):
    """What the library needs of a codec."""

    @property
    def sample_rate(self) -> int:
        """Hz, of the waveforms it encodes."""

    @property
    def hop_length(self) -> int:
        """Samples in a frame of codes."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the codes of a recording."""

    def encode(self, waveform: Tensor) -> Tensor:
        """[N] float32 to [T, C] int64."""


@dataclass(frozen=True)
class VoiceInfo:
    """One entry of the catalogue; nothing of it needs the recording to be read."""

    voice_id: str
    transcript: str  # begins with [S1]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who speaks in the recording: `("S1",)` or `("S1", "S2")`."""
        return speakers_of(self.transcript)


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice ready to be used as a prompt."""

    voice_id: str
    codes: Tensor  # [T, C] int64 on the CPU
    transcript: str  # of exactly what is said in the codes; begins with [S1]
    duration_s: float
    processing_time: float  # seconds taken to load or to encode it
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what about the recording is not as recommended

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who speaks in the recording: `("S1",)` or `("S1", "S2")`."""
        return speakers_of(self.transcript)


def is_voice_id(voice_id: str) -> bool:
    """Whether a voice may have that id."""
    return _VOICE_ID.fullmatch(voice_id) is not None


def check_voice_id(voice_id: str) -> None:
    """Refuses what is not a voice id, and so whatever could leave the library's folder.

    Raises:
        InvalidInput: naming what is valid.
    """
    if not is_voice_id(voice_id):
        raise InvalidInput(
            f"voice_id is {voice_id[:80]!r}; valid are 1 to 64 of the characters "
            "A-Z a-z 0-9 _ -, the first a letter or a digit"
        )


def clean_transcript(text: str) -> str:
    """The transcript as the model reads it: single spaces, beginning with `[S1]`.

    Text without any speaker tag is one speaker's, and gets `[S1]` before it.

    Raises:
        InvalidReference: if nothing is said in it, it is too long, or its tags are not valid.
    """
    text = " ".join(text.split())
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise InvalidReference("the transcript holds control characters")
    tags = _TAG.findall(text)
    unknown = [tag for tag in tags if tag[1:-1] not in _SPEAKERS]
    if unknown:
        raise InvalidReference(f"the transcript holds {unknown[0]}; valid tags are [S1] and [S2]")
    if not any(character.isalpha() for character in spoken(text)):
        raise InvalidReference("the transcript is missing: every word of the recording is needed")
    if tags and not text.startswith("[S1]"):
        raise InvalidReference(f"the transcript begins with {text[:20]!r}; it must with [S1]")
    text = text if tags else f"[S1] {text}"
    return _check_size(text)


def check_pace(transcript: str, seconds: float) -> list[str]:
    """Whether so much text can have been said in that time.

    Returns:
        Warnings, for people; empty where the pace is plausible.

    Raises:
        InvalidReference: if the text is far too long for the recording.
    """
    pace = len(spoken(transcript)) / seconds
    if pace > MAX_CHARACTERS_PER_S:
        raise InvalidReference(
            f"the transcript does not fit the recording: {pace:.0f} characters a second, "
            f"at most {MAX_CHARACTERS_PER_S:g} can be spoken"
        )
    if pace < MIN_CHARACTERS_PER_S:
        return [f"the transcript is short: {pace:.1f} characters a second; is it complete?"]
    return []


def clean_metadata(raw: object) -> dict[str, str]:
    """Metadata as text: a flat mapping of keys to single values.

    Raises:
        InvalidReference: if it is anything else.
    """
    if not isinstance(raw, Mapping):
        raise InvalidReference(f"metadata is a {type(raw).__name__}; valid is a mapping")
    nested = [key for key, value in raw.items() if isinstance(value, Mapping | list | tuple)]
    if nested:
        raise InvalidReference(f"metadata {nested[0]!r} is not a single value")
    return {str(key): str(value) for key, value in raw.items()}


def speakers_of(transcript: str) -> tuple[str, ...]:
    """The speakers whose tags are in a transcript, in order."""
    return tuple(speaker for speaker in _SPEAKERS if f"[{speaker}]" in transcript)


def spoken(transcript: str) -> str:
    """A transcript without its speaker tags."""
    return " ".join(_TAG.sub(" ", transcript).split())


def _check_size(text: str) -> str:
    size = len(text.encode())
    if size > MAX_TRANSCRIPT_BYTES:
        raise InvalidReference(
            f"the transcript takes {size} bytes; at most {MAX_TRANSCRIPT_BYTES} are allowed, "
            f"enough for {MAX_SECONDS:g} s of speech"
        )
    return text

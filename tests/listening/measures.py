"""From jobs and recordings to the numbers that the gates are about.

A model is measured as its users hear it: jobs go through the handler, answers come back as files. A
codec is measured alone: recordings go in and out of it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import soundfile
import soxr  # type: ignore[import-untyped]
import torch
import yaml

from tests.listening import ears, texts
from tests.listening.ears import Waveform, WordErrors
from tests.listening.gates import (
    CODEC_QUALITY,
    CODEC_WORDS,
    ENDINGS,
    KEPT_CHUNKS,
    KEPT_VOICE,
    LONG_TEXT_WORDS,
    LOST_WORDS,
    MISSING_CHUNKS,
    OTHER_SPEAKER,
    SAME_SPEAKER,
    SENTENCE_QUALITY,
    SENTENCE_WORDS,
    SHORTEST_TURN_S,
    TOLD_APART,
    Gate,
)
from worker.codec.codec import Codec
from worker.text import parse_turns

Job = dict[str, Any]
Handler = Callable[[Job], Awaitable[dict[str, Any]]]
Values = dict[Gate, float]

FLITE_VOICES = ("slt", "rms", "awb")  # 16 kHz; a woman and two men
_ENDED_BY_FORCE = ("was stopped at its limit", "words are missing")


@dataclass(frozen=True)
class Recording:
    """Speech, and the words that are said in it."""

    name: str
    text: str
    waveform: Waveform = field(repr=False)
    sample_rate: int  # Hz

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.waveform) / self.sample_rate

    @cached_property
    def heard(self) -> str:
        """The words that the ears hear in it."""
        return ears.transcribe(self.waveform, self.sample_rate)

    @cached_property
    def errors(self) -> WordErrors:
        """Words heard otherwise than they are written."""
        return ears.count_errors(self.text, self.heard)

    @cached_property
    def quality(self) -> float:
        """Its mean opinion score."""
        return ears.quality(self.waveform, self.sample_rate)

    def like(self, other: Recording) -> float:
        """Similarity of the voices; both at one rate."""
        assert self.sample_rate == other.sample_rate
        return ears.similarity(self.waveform, other.waveform, self.sample_rate)

    def at(self, sample_rate: int) -> Recording:
        """The same at another rate."""
        if sample_rate == self.sample_rate:
            return self
        waveform = soxr.resample(self.waveform, self.sample_rate, sample_rate)
        return self.changed(np.asarray(waveform, dtype=np.float32), sample_rate)

    def changed(self, waveform: Waveform, sample_rate: int | None = None) -> Recording:
        """What was made of it; the words stay the same."""
        return Recording(self.name, self.text, waveform, sample_rate or self.sample_rate)


@dataclass(frozen=True)
class Spoken(Recording):
    """What the worker made of one job."""

    chunks: tuple[Recording, ...]
    forced: int  # chunks that the model did not end by itself, or ended at once


# Recordings


def shipped_voice(folder: Path) -> Recording:
    """A voice of the library, as a recording."""
    described = yaml.safe_load((folder / "voice.yaml").read_text(encoding="utf-8"))
    waveform, rate = soundfile.read(folder / "audio.flac", dtype="float32")
    return Recording(folder.name, described["transcript"], waveform, rate)


def has_flite() -> bool:
    """Whether Debian's flite is installed."""
    return shutil.which("flite") is not None


def flite(voice: str, text: str, folder: Path) -> Recording:
    """A text, spoken by flite: understood by everybody, pleasant to nobody."""
    file = folder / "flite.wav"
    subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(file)], check=True, timeout=60)
    waveform, rate = soundfile.read(file, dtype="float32")
    return Recording(voice, text, waveform, rate)


# The worker


def speak(handler: Handler, jobs: Sequence[Job]) -> list[Spoken]:
    """Does all jobs side by side, as the handler's `input`s; asserts that none is refused."""

    async def answers() -> list[dict[str, Any]]:
        requests = [{"id": str(index), "input": job} for index, job in enumerate(jobs)]
        return list(await asyncio.gather(*map(handler, requests)))

    return [_spoken(job, answer) for job, answer in zip(jobs, asyncio.run(answers()), strict=True)]


def _spoken(job: Job, answer: dict[str, Any]) -> Spoken:
    assert "error" not in answer, answer["error"]
    data = base64.b64decode(answer["audio"])
    waveform, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    forced = sum(
        any(words in warning for words in _ENDED_BY_FORCE) for warning in answer["warnings"]
    )
    chunks = tuple(
        Recording(
            f"chunk {number}",
            chunk["text"],
            waveform[round(chunk["start"] * rate) : round(chunk["end"] * rate)],
            rate,
        )
        for number, chunk in enumerate(answer["chunks"], start=1)
    )
    return Spoken(job["text"][:40], job["text"], waveform, rate, chunks, forced)


def sentence_jobs(count: int) -> list[Job]:
    """One job for each of the first held-out sentences, each with its own seed."""
    return [
        {"text": f"[S1] {text}", "seed": 100 + index}
        for index, text in enumerate(texts.sentences(count))
    ]


def long_text_job(voice_id: str) -> Job:
    """The long text, cut as the worker cuts it by default, in a voice of the library."""
    return {"text": texts.LONG_TEXT, "seed": 7, "voice_id": voice_id}


def dialogue_jobs(count: int) -> list[Job]:
    """One job for each of the first dialogues; each is one generation with four turns."""
    return [
        {"text": texts.tagged(turns), "seed": 500 + index, "enable_chunking": False}
        for index, turns in enumerate(texts.DIALOGUES[:count])
    ]


def sentence_values(spoken: Sequence[Spoken]) -> Values:
    """Whether sentences are understood, sound well and end by themselves."""
    chunks = sum(len(one.chunks) for one in spoken)
    return {
        SENTENCE_WORDS: word_errors(spoken),
        SENTENCE_QUALITY: fmean(one.quality for one in spoken),
        ENDINGS: 1 - sum(one.forced for one in spoken) / chunks,
    }


def long_text_values(spoken: Spoken, voice: Recording) -> Values:
    """Whether all of a long text is there, and the voice is that of the prompt."""
    reference = voice.at(spoken.sample_rate)
    first = spoken.chunks[:KEPT_CHUNKS]
    return {
        LONG_TEXT_WORDS: word_errors(spoken.chunks),
        MISSING_CHUNKS: sum(chunk.errors.rate > LOST_WORDS for chunk in spoken.chunks),
        KEPT_VOICE: min(chunk.like(reference) for chunk in first) if first else 0.0,
    }


def speaker_values(dialogue: Recording) -> Values:
    """How alike the turns of one speaker are, and those of two; the worst pairs decide.

    A turn that was not heard, or is shorter than speakers can be told by, is like nobody and, to
    be on the safe side, like everybody.
    """
    turns = parse_turns(dialogue.text)
    rate = dialogue.sample_rate
    parts = ears.cut_at_texts(dialogue.waveform, rate, [turn.text for turn in turns])
    if min(len(part) for part in parts) < SHORTEST_TURN_S * rate:
        return {SAME_SPEAKER: 0.0, OTHER_SPEAKER: 1.0}
    voices = [ears.embed_voice(part, rate) for part in parts]
    pairs = list(combinations(range(len(turns)), 2))
    alike = {pair: float(np.dot(voices[pair[0]], voices[pair[1]])) for pair in pairs}
    same = [pair for pair in pairs if turns[pair[0]].speaker == turns[pair[1]].speaker]
    return {
        SAME_SPEAKER: min(alike[pair] for pair in same),
        OTHER_SPEAKER: max(alike[pair] for pair in pairs if pair not in same),
    }


def told_apart(values: Sequence[Values]) -> float:
    """The share of dialogues in which both gates on speakers pass."""
    return fmean(all(gate.passes(value) for gate, value in one.items()) for one in values)


def dialogue_values(spoken: Sequence[Recording]) -> Values:
    """Whether the speakers of dialogues are told apart."""
    return {TOLD_APART: told_apart([speaker_values(one) for one in spoken])}


def word_errors(recordings: Sequence[Recording]) -> float:
    """The word error rate of all of them as one text."""
    return ears.total(one.errors for one in recordings).rate


def realtime_factor(handler: Handler, jobs: Sequence[Job]) -> float:
    """Seconds of audio for each second of work."""
    started = time.monotonic()
    spoken = speak(handler, jobs)
    return sum(one.seconds for one in spoken) / (time.monotonic() - started)


# The codec


def through_codec(codec: Codec, recording: Recording) -> Recording:
    """What is left of a recording after it was codes."""
    source = recording.at(codec.sample_rate)
    decoded = codec.decode(codec.encode(torch.from_numpy(source.waveform))).numpy()
    return source.changed(decoded[: len(source.waveform)])


def codec_values(sources: Sequence[Recording], decoded: Sequence[Recording]) -> Values:
    """What a codec costs: recordings, and what it left of each."""
    return {
        CODEC_WORDS: word_errors(decoded) - word_errors(sources),
        CODEC_QUALITY: fmean(one.quality for one in decoded),
    }

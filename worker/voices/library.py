"""The voice library: from a voice's id, or a recording, to the codes that prompt the model.

Knows the order in which a voice is looked for (memory, kept codes, recording) and counts its use.
Knows nothing of where voices lie (`storage`) or how codes are kept (`cache`).

One lock guards the memory, another whatever reads or encodes, so that a voice is encoded once
however many ask for it at once, and a voice in memory never waits for one that is not.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from worker.audio.check import MAX_SECONDS, MIN_SECONDS, check_length, check_reference
from worker.audio.decode import read_audio
from worker.errors import InvalidInput, InvalidReference, UnknownVoice
from worker.voices.cache import Codes, LruCache, pack_codes, unpack_codes
from worker.voices.storage import AUDIO_SUFFIXES, FolderStorage, VoiceStorage
from worker.voices.voice import (
    CodecLike,
    Voice,
    VoiceInfo,
    check_pace,
    check_voice_id,
    clean_metadata,
    clean_transcript,
)

logger = logging.getLogger(__name__)

NAMES_IN_MESSAGES = 12  # libraries up to this size are listed whole


class LibraryStats(TypedDict):
    """How the library was used since it was made."""

    hits: int  # `get`s answered from memory
    misses: int  # all other `get`s of a voice that exists
    cache_hit_rate: float  # hits / (hits + misses); 0 before the first
    cached_voices: list[str]  # in memory now, the least recently used first
    usage_count: dict[str, int]  # `get`s of each voice


class VoiceLibrary:
    """All voices of one folder, encoded by one codec. Safe to share between threads."""

    def __init__(
        self,
        path: Path,
        codec: CodecLike,
        max_cache_size: int = 10,
        storage: VoiceStorage | None = None,
        *,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        """Opens a library; nothing is read yet.

        Args:
            path: the folder; it need not exist until a voice is added.
            codec: encodes recordings; used by one thread at a time.
            max_cache_size: voices kept in memory.
            storage: where voices lie, if not in `path`.
            max_seconds: longest recording that is accepted.
        """
        self._codec = codec
        self._storage = storage or FolderStorage(path)
        self._max_seconds = max_seconds
        self._cache: LruCache[Voice] = LruCache(max_cache_size)
        self._usage: Counter[str] = Counter()
        self._hits = 0
        self._lock = threading.Lock()  # of the three above
        self._load_lock = threading.Lock()  # of the codec, and of writing
        self._told_read_only = False

    def list_voices(self) -> list[VoiceInfo]:
        """The catalogue, sorted by id. Voices that are damaged are logged and left out."""
        found = []
        for voice_id in self._storage.list_ids():
            try:
                info = self._storage.read_manifest(voice_id)
            except InvalidReference as error:
                logger.warning("voice %r is left out: %s", voice_id, error.message)
                continue
            if info is not None:
                found.append(info)
        return found

    def get(self, voice_id: str) -> Voice:
        """The voice of that id, from memory, from its kept codes, or encoded now.

        Raises:
            InvalidInput: if no voice can have that id.
            UnknownVoice: if no voice has it.
            InvalidReference: if its recording or transcript cannot serve.
        """
        check_voice_id(voice_id)
        voice = self._from_memory(voice_id)
        hit = voice is not None
        voice = voice or self._load(voice_id)
        with self._lock:
            self._hits += hit
            self._usage[voice_id] += 1
        return voice

    def preload(self, names: Iterable[str]) -> None:
        """Loads voices into memory, without counting it as use. Raises what `get` does."""
        for name in names:
            check_voice_id(name)
            self._load(name)

    def add_voice_from_audio(
        self,
        voice_id: str,
        audio_path: Path,
        reference_text: str,
        metadata: Mapping[str, object] | None = None,
        *,
        overwrite: bool = False,
    ) -> Voice:
        """Adds a voice to the library, and encodes it. Where it is refused nothing is written.

        Args:
            voice_id: 1 to 64 letters, digits, `_` and `-`.
            audio_path: a recording of 1 to 20 s, best 5 to 10 s; it is copied.
            reference_text: what is said in it, word for word; `[S1] ` may be left out.
            metadata: name, gender, style, language, license, source, or whatever serves.
            overwrite: replace the voice that has this id, if one has.

        Raises:
            InvalidInput: if the id is not valid, or taken.
            InvalidReference: if the recording or the transcript cannot serve.
            SetupError: if the library cannot be written.
        """
        check_voice_id(voice_id)
        started = time.perf_counter()
        with self._load_lock, _naming(voice_id):
            self._check_free(voice_id, overwrite)
            text = clean_transcript(reference_text)
            info = VoiceInfo(voice_id, text, clean_metadata(metadata or {}))
            suffix = _audio_suffix(audio_path)
            waveform = self._read(audio_path, text)
            audio = audio_path.read_bytes()
            codes = self._encode(waveform, hashlib.sha256(audio).hexdigest())
            self._storage.add(info, audio, suffix)
            self._keep_codes(voice_id, codes)
            return self._finish(info, codes, started)

    def clone(self, audio: bytes, reference_text: str) -> Voice:
        """A voice from a recording that came with a job. It is not kept anywhere.

        Its id is `clone-` and a digest of recording and transcript.

        Raises:
            InvalidReference: if the recording or the transcript cannot serve.
        """
        started = time.perf_counter()
        text = clean_transcript(reference_text)
        waveform = self._read(audio, text)
        digest = hashlib.sha256(audio).hexdigest()
        with self._load_lock:
            codes = self._encode(waveform, digest)
        voice_id = f"clone-{hashlib.sha256(f'{digest} {text}'.encode()).hexdigest()[:16]}"
        return self._voice(VoiceInfo(voice_id, text), codes, started)

    def get_performance_stats(self) -> LibraryStats:
        """How the library was used so far."""
        with self._lock:
            uses = self._usage.total()
            return LibraryStats(
                hits=self._hits,
                misses=uses - self._hits,
                cache_hit_rate=self._hits / uses if uses else 0.0,
                cached_voices=list(self._cache),
                usage_count=dict(self._usage),
            )

    def _from_memory(self, voice_id: str) -> Voice | None:
        with self._lock:
            return self._cache.get(voice_id)

    def _load(self, voice_id: str) -> Voice:
        with self._load_lock, _naming(voice_id):
            voice = self._from_memory(voice_id)  # another thread may have loaded it meanwhile
            if voice is not None:
                return voice
            started = time.perf_counter()
            info = self._storage.read_manifest(voice_id)
            if info is None:
                raise self._unknown(voice_id)
            audio = self._storage.read_audio(voice_id)
            return self._finish(info, self._codes_of(info, audio), started)

    def _codes_of(self, info: VoiceInfo, audio: bytes) -> Codes:
        digest = hashlib.sha256(audio).hexdigest()
        fingerprint = self._codec.fingerprint
        data = self._storage.read_codes(info.voice_id, fingerprint)
        kept = unpack_codes(data, fingerprint, digest) if data is not None else None
        if kept is not None:
            return kept
        codes = self._encode(self._read(audio, info.transcript), digest)
        self._keep_codes(info.voice_id, codes)
        return codes

    def _read(self, source: Path | bytes, transcript: str) -> NDArray[np.float32]:
        """A recording that has passed all checks, at the codec's rate."""
        rate = self._codec.sample_rate
        waveform = read_audio(source, rate)
        check_reference(waveform, rate, MIN_SECONDS, self._max_seconds)
        check_pace(transcript, len(waveform) / rate)
        return waveform

    def _encode(self, waveform: NDArray[np.float32], audio_sha256: str) -> Codes:
        codes = self._codec.encode(torch.from_numpy(waveform)).to("cpu", torch.int64)
        return Codes(codes, len(waveform), self._codec.fingerprint, audio_sha256)

    def _keep_codes(self, voice_id: str, codes: Codes) -> None:
        try:
            self._storage.write_codes(voice_id, codes.fingerprint, pack_codes(codes))
        except OSError as error:
            if not self._told_read_only:
                logger.warning("codes of voices stay in memory only: %s", error)
            self._told_read_only = True

    def _finish(self, info: VoiceInfo, codes: Codes, started: float) -> Voice:
        voice = self._voice(info, codes, started)
        for warning in voice.warnings:
            logger.warning("voice %r: %s", info.voice_id, warning)
        with self._lock:
            self._cache.put(info.voice_id, voice)
        return voice

    def _voice(self, info: VoiceInfo, codes: Codes, started: float) -> Voice:
        seconds = codes.samples / self._codec.sample_rate
        length = check_length(seconds, MIN_SECONDS, self._max_seconds)
        return Voice(
            voice_id=info.voice_id,
            codes=codes.tensor,
            transcript=info.transcript,
            duration_s=seconds,
            processing_time=time.perf_counter() - started,
            metadata=info.metadata,
            warnings=(*length, *check_pace(info.transcript, seconds)),
        )

    def _check_free(self, voice_id: str, overwrite: bool) -> None:
        if not overwrite and voice_id in self._storage.list_ids():
            raise InvalidInput(
                f"voice_id {voice_id!r} is taken; choose another, or set overwrite to replace it"
            )

    def _unknown(self, voice_id: str) -> UnknownVoice:
        names = self._storage.list_ids()
        lowered = {name.lower(): name for name in names}
        close = [lowered[name] for name in difflib.get_close_matches(voice_id.lower(), lowered)]
        message = f"voice_id {voice_id!r} names no voice"
        if close:
            message += f"; close are {', '.join(close)}"
        if not names:
            message += "; the library is empty"
        elif len(names) <= NAMES_IN_MESSAGES:
            message += f"; the library has {', '.join(names)}"
        return UnknownVoice(message)


@contextmanager
def _naming(voice_id: str) -> Iterator[None]:
    try:
        yield
    except InvalidReference as error:
        raise InvalidReference(f"voice {voice_id!r}: {error.message}") from error


def _audio_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in AUDIO_SUFFIXES:
        raise InvalidReference(
            f"{path.name} ends in {suffix!r}; valid are {', '.join(AUDIO_SUFFIXES)}"
        )
    return suffix

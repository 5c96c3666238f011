"""Where voices lie: `<library>/<voice_id>/` with `voice.yaml`, `audio.*` and derived codes.

    voices/narrator/voice.yaml                    transcript, metadata
    voices/narrator/audio.flac                    the recording, as it was given
    voices/narrator/codes.<codec>.safetensors     derived; may be deleted at any time

Knows files. Knows nothing of audio, codecs or what the bytes of the codes mean.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import yaml

from worker.errors import EngineError, InvalidReference, SetupError
from worker.voices.voice import VoiceInfo, clean_metadata, clean_transcript, is_voice_id

logger = logging.getLogger(__name__)

MANIFEST = "voice.yaml"
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")


class VoiceStorage(Protocol):
    """What the library needs of the place where voices lie.

    Ids given to it are valid (`check_voice_id`). It raises `EngineError` where the place cannot
    be read, `InvalidReference` where a voice in it is damaged.
    """

    def list_ids(self) -> list[str]:
        """The ids of all voices, sorted."""

    def read_manifest(self, voice_id: str) -> VoiceInfo | None:
        """The voice's entry in the catalogue; None if there is no such voice."""

    def read_audio(self, voice_id: str) -> bytes:
        """The file of the recording."""

    def read_codes(self, voice_id: str, fingerprint: str) -> bytes | None:
        """What `write_codes` was given; None if there is nothing."""

    def write_codes(self, voice_id: str, fingerprint: str, data: bytes) -> None:
        """Keeps derived codes, wholly or not at all. Raises OSError where it cannot."""

    def add(self, info: VoiceInfo, audio: bytes, suffix: str) -> None:
        """Keeps a voice in place of any of that id, wholly or not at all.

        Args:
            info: the catalogue's entry.
            audio: the file of the recording.
            suffix: one of `AUDIO_SUFFIXES`.

        Raises:
            SetupError: where nothing can be written.
        """


class FolderStorage:
    """Voices in a folder of this machine, or of a volume mounted on it.

    Several workers may share the folder: every file appears whole under its name. While a voice
    is being replaced, another process may for an instant not find it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def list_ids(self) -> list[str]:
        """See `VoiceStorage`; a folder that does not exist holds no voices."""
        try:
            return sorted(file.parent.name for file in self._manifests())
        except OSError as error:
            raise EngineError(f"the voice library cannot be read: {error.strerror}") from error

    def read_manifest(self, voice_id: str) -> VoiceInfo | None:
        """See `VoiceStorage`."""
        try:
            raw = yaml.safe_load((self._path / voice_id / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise EngineError(f"{voice_id}/{MANIFEST} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InvalidReference(f"{MANIFEST} is not valid YAML: {error}") from error
        return _parse_manifest(voice_id, raw)

    def read_audio(self, voice_id: str) -> bytes:
        """See `VoiceStorage`."""
        folder = self._path / voice_id
        try:
            files = [file for file in folder.glob("audio.*") if file.suffix in AUDIO_SUFFIXES]
            if len(files) == 1:
                return files[0].read_bytes()
        except OSError as error:
            raise EngineError(f"audio of {voice_id} cannot be read: {error.strerror}") from error
        raise InvalidReference(
            f"{len(files)} recordings where 1 must be: audio with {', '.join(AUDIO_SUFFIXES)}"
        )

    def read_codes(self, voice_id: str, fingerprint: str) -> bytes | None:
        """See `VoiceStorage`."""
        try:
            return self._codes_file(voice_id, fingerprint).read_bytes()
        except OSError:  # derived: what cannot be read is made again
            return None

    def write_codes(self, voice_id: str, fingerprint: str, data: bytes) -> None:
        """See `VoiceStorage`."""
        _write_whole(self._codes_file(voice_id, fingerprint), data)

    def add(self, info: VoiceInfo, audio: bytes, suffix: str) -> None:
        """See `VoiceStorage`."""
        assert is_voice_id(info.voice_id) and suffix in AUDIO_SUFFIXES
        new = self._path / f".adding-{uuid4().hex}"
        try:
            new.mkdir(parents=True)
            (new / f"audio{suffix}").write_bytes(audio)
            (new / MANIFEST).write_text(_format_manifest(info), encoding="utf-8")
            self._put_in_place(new, self._path / info.voice_id)
        except OSError as error:
            raise SetupError(
                f"the voice library cannot be written: {error.strerror or error}"
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _put_in_place(self, new: Path, place: Path) -> None:
        old = self._path / f".replaced-{uuid4().hex}"
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)

    def _manifests(self) -> list[Path]:
        files = self._path.glob(f"*/{MANIFEST}")
        return [file for file in files if is_voice_id(file.parent.name)]

    def _codes_file(self, voice_id: str, fingerprint: str) -> Path:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", fingerprint)[:64]
        return self._path / voice_id / f"codes.{name}.safetensors"


def _parse_manifest(voice_id: str, raw: object) -> VoiceInfo:
    if not isinstance(raw, dict) or not isinstance(raw.get("transcript"), str):
        raise InvalidReference(f"{MANIFEST} holds no transcript (a text)")
    unknown = sorted(str(key) for key in raw.keys() - {"transcript", "metadata"})
    if unknown:
        raise InvalidReference(
            f"{MANIFEST} holds unknown keys: {', '.join(unknown)}; valid are transcript, metadata"
        )
    metadata = clean_metadata(raw.get("metadata") or {})
    return VoiceInfo(voice_id, clean_transcript(raw["transcript"]), metadata)


def _format_manifest(info: VoiceInfo) -> str:
    content = {"transcript": info.transcript, "metadata": dict(info.metadata)}
    return str(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def _write_whole(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)

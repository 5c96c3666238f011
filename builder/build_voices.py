"""Encodes every voice of the library with an image's codec, so that no cold start has to.

    python -m builder.build_voices voices models/dac_44khz

The codes are kept beside the recordings, under the codec's fingerprint, where the voice library
looks first. A voice that cannot serve ends the build with one line; one that has its codes already
is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.errors import InvalidReference, SetupError, WorkerError
from worker.voices.cache import unpack_codes
from worker.voices.library import VoiceLibrary
from worker.voices.storage import MANIFEST, FolderStorage
from worker.voices.voice import check_voice_id

logger = logging.getLogger("builder.build_voices")


def build_voices(library: Path, codec: Codec) -> list[str]:
    """Encodes every voice of a library that has no codes of this codec yet.

    Returns:
        The ids of all voices.

    Raises:
        SetupError: if the library holds no voice, or cannot be written.
        WorkerError: if a voice cannot serve; it is named.
    """
    ids = _ids(library)
    storage = FolderStorage(library)
    voices = VoiceLibrary(library, codec, storage=storage)
    for voice_id in ids:
        voice = voices.get(voice_id)
        if not _are_kept(storage, voice_id, codec):
            raise SetupError(f"{library / voice_id}: the codes could not be written there")
        logger.info(
            "%s: %.2f s, %d frames, took %.2f s",
            voice_id, voice.duration_s, len(voice.codes), voice.processing_time,
        )  # fmt: skip
    return ids


def _ids(library: Path) -> list[str]:
    """Every folder of the library. The worker leaves out what is no voice; a build does not."""
    if not library.is_dir():
        raise SetupError(f"{library}: no such folder")
    folders = sorted(entry for entry in library.iterdir() if entry.is_dir())
    for folder in folders:
        check_voice_id(folder.name)
        if not (folder / MANIFEST).is_file():
            raise InvalidReference(f"voice {folder.name!r}: there is no {MANIFEST}")
    if not folders:
        raise SetupError(f"{library}: holds no voices")
    return [folder.name for folder in folders]


def _are_kept(storage: FolderStorage, voice_id: str, codec: Codec) -> bool:
    """Whether a worker will find codes that it accepts: the library only warns where it cannot."""
    digest = hashlib.sha256(storage.read_audio(voice_id)).hexdigest()
    kept = storage.read_codes(voice_id, codec.fingerprint)
    return kept is not None and unpack_codes(kept, codec.fingerprint, digest) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the voices of a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="encodes the voices of an image")
    parser.add_argument("library", type=Path, help="folder of the voices")
    parser.add_argument("codec", type=Path, help="folder of the codec")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        codec = load_codec(options.codec, torch.device("cpu"))
        ids = build_voices(options.library, codec)
    except WorkerError as error:
        logger.error("%s", " ".join(str(error).split()))
        return 1
    logger.info("%d voices, for the codec %s", len(ids), codec.fingerprint)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""When kept codes are used, and when a recording is encoded again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.voices.fakes import (
    FakeCodec,
    codes_file,
    files_below,
    library_of,
    write_tone,
    write_voice,
)
from worker.errors import InvalidReference
from worker.voices.library import VoiceLibrary
from worker.voices.storage import FolderStorage


class ReadOnlyStorage(FolderStorage):
    """A folder that nothing can be written to, whoever tries."""

    def write_codes(self, voice_id: str, fingerprint: str, data: bytes) -> None:
        raise PermissionError(30, "Read-only file system")


def test_the_next_worker_reads_the_codes_instead_of_encoding(tmp_path: Path) -> None:
    first = library_of(tmp_path, "narrator").get("narrator")
    codec = FakeCodec()
    again = VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 0
    assert torch.equal(again.codes, first.codes)
    assert again.duration_s == first.duration_s


def test_a_changed_recording_is_encoded_again(tmp_path: Path) -> None:
    first = library_of(tmp_path, "narrator").get("narrator")
    write_tone(tmp_path / "narrator" / "audio.flac", seconds=7.0)
    codec = FakeCodec()
    again = VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 1
    assert len(again.codes) > len(first.codes)
    codec = FakeCodec()
    VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 0, "the new codes were not kept"


def test_a_changed_codec_encodes_again_and_leaves_the_other_codes_be(tmp_path: Path) -> None:
    library_of(tmp_path, "narrator").get("narrator")
    for expected in (1, 0):
        codec = FakeCodec("another/codec")
        VoiceLibrary(tmp_path, codec).get("narrator")
        assert codec.calls == expected
    codec = FakeCodec()
    VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 0


def test_a_changed_transcript_is_used_without_encoding_again(tmp_path: Path) -> None:
    library_of(tmp_path, "narrator").get("narrator")
    (tmp_path / "narrator" / "voice.yaml").write_text("transcript: Another sentence, said here.")
    codec = FakeCodec()
    assert VoiceLibrary(tmp_path, codec).get("narrator").transcript.startswith("[S1] Another")
    assert codec.calls == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other file", "codec renamed"])
def test_codes_that_are_damaged_are_replaced(tmp_path: Path, damage: str) -> None:
    first = library_of(tmp_path, "narrator").get("narrator")
    file = codes_file(tmp_path, "narrator")
    whole = file.read_bytes()
    flipped = whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:]
    renamed = whole.replace(b"0123456789abcdef", b"fedcba9876543210")
    file.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-100],
            "flipped": flipped,
            "other file": b"\x00" * 5000,
            "codec renamed": renamed,
        }[damage]
    )
    codec = FakeCodec()
    again = VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 1
    assert torch.equal(again.codes, first.codes)
    VoiceLibrary(tmp_path, codec).get("narrator")
    assert codec.calls == 1, "the damaged file was not replaced"


def test_a_folder_that_cannot_be_written_works_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        write_voice(tmp_path, name)
    before = files_below(tmp_path)
    codec = FakeCodec()
    library = VoiceLibrary(tmp_path, codec, storage=ReadOnlyStorage(tmp_path))
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b", "a"):
            library.get(name)
    assert codec.calls == 2
    assert files_below(tmp_path) == before
    assert len([r for r in caplog.records if "memory only" in r.getMessage()]) == 1


def test_codes_that_cannot_be_written_leave_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(tmp_path, "narrator")
    before = files_below(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    library.get("narrator")
    assert files_below(tmp_path) == before


def test_a_longest_recording_that_was_lowered_holds_for_kept_codes_too(tmp_path: Path) -> None:
    library_of(tmp_path, "narrator").get("narrator")
    strict = VoiceLibrary(tmp_path, FakeCodec(), max_seconds=5.0)
    with pytest.raises(InvalidReference, match=r"voice 'narrator': .*too long.*1 to 5 s"):
        strict.get("narrator")

"""The voices of an image: encoded once, and a bad one ends the build."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.build_voices import main
from tests.builder.published import the_error
from tests.conftest import SHIPPED_VOICES
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.startup import resolve_device
from worker.voices.library import VoiceLibrary


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """One of the voices that ship, without codes that somebody may have left there."""
    ignored = shutil.ignore_patterns("codes.*", "README.md", "narrator_warm")
    return Path(shutil.copytree(SHIPPED_VOICES, tmp_path / "voices", ignore=ignored))


@pytest.fixture(scope="session")
def codec_folder(tiny_model: Path) -> Path:
    return tiny_model / "codec"


def codes_in(library: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in library.rglob("codes.*.safetensors")}


def test_a_worker_finds_the_codes_of_every_voice_and_encodes_none(
    library: Path, codec_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(library), str(codec_folder)]) == 0
    monkeypatch.setattr(Codec, "encode", lambda *_: pytest.fail("a voice was encoded again"))
    voices = VoiceLibrary(library, load_codec(codec_folder, resolve_device("cpu")))
    voices.preload(info.voice_id for info in voices.list_voices())
    assert len(codes_in(library)) == len(voices.list_voices()) == 1


def test_a_second_build_changes_nothing(library: Path, codec_folder: Path) -> None:
    assert main([str(library), str(codec_folder)]) == 0
    before = codes_in(library)
    assert main([str(library), str(codec_folder)]) == 0
    assert codes_in(library) == before


def harm_audio(voice: Path) -> None:
    (voice / "audio.flac").write_bytes(b"no sound")


def harm_transcript(voice: Path) -> None:
    (voice / "voice.yaml").write_text("transcript: ''")


def harm_manifest(voice: Path) -> None:
    (voice / "voice.yaml").unlink()


@pytest.mark.parametrize("harm", [harm_audio, harm_transcript, harm_manifest])
def test_a_bad_voice_ends_the_build_with_one_line_that_names_it(
    library: Path, codec_folder: Path, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    assert callable(harm)
    harm(library / "narrator_deep")
    assert main([str(library), str(codec_folder)]) == 1
    assert "voice 'narrator_deep'" in the_error(caplog)


def test_a_folder_that_no_voice_may_be_called_after_ends_the_build(
    library: Path, codec_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (library / "narrator_deep").rename(library / "deep narrator")
    assert main([str(library), str(codec_folder)]) == 1
    assert "voice_id is 'deep narrator'" in the_error(caplog)


def test_codes_that_cannot_be_kept_end_the_build(
    library: Path,
    codec_folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("worker.voices.storage._write_whole", refuse)
    assert main([str(library), str(codec_folder)]) == 1
    assert "the codes could not be written there" in the_error(caplog)


@pytest.mark.parametrize("what", ["nothing", "an empty folder"])
def test_a_library_without_voices_ends_the_build(
    tmp_path: Path, codec_folder: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    if what == "an empty folder":
        (tmp_path / "none").mkdir()
    assert main([str(tmp_path / "none"), str(codec_folder)]) == 1
    assert ("holds no voices" if what == "an empty folder" else "no such folder") in the_error(
        caplog
    )


def test_a_codec_that_is_not_there_ends_the_build(
    library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(library), str(tmp_path / "dac")]) == 1
    assert "dac: no such file" in the_error(caplog)

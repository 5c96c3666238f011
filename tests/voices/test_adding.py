"""What a user gets who brings a recording: a voice of the library, or a clone for one job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from tests.voices.fakes import (
    RATE,
    TEXT,
    FakeCodec,
    codes_file,
    files_below,
    library_of,
    tone,
    write_tone,
)
from worker.errors import InvalidInput, InvalidReference, SetupError
from worker.voices.library import VoiceLibrary


def test_an_added_voice_can_be_used_at_once_and_by_the_next_worker(tmp_path: Path) -> None:
    codec = FakeCodec()
    library = VoiceLibrary(tmp_path / "voices", codec)
    recording = write_tone(tmp_path / "r.wav")
    added = library.add_voice_from_audio(
        "narrator_deep", recording, TEXT, metadata={"style": "narrative", "version": 1.0}
    )
    assert added.metadata == {"style": "narrative", "version": "1.0"}
    assert added.processing_time > 0
    assert library.get("narrator_deep") is added
    recording.unlink()
    again = VoiceLibrary(tmp_path / "voices", codec).get("narrator_deep")
    assert codec.calls == 1
    assert torch.equal(again.codes, added.codes)
    assert again.metadata == added.metadata
    assert (again.transcript, again.duration_s) == (added.transcript, added.duration_s)


def test_a_stereo_mp3_at_48_khz_becomes_a_voice(tmp_path: Path) -> None:
    wave = tone(6.0)
    soundfile.write(tmp_path / "r.mp3", np.stack([wave, wave], axis=1), 48_000)
    voice = library_of(tmp_path / "voices").add_voice_from_audio("a", tmp_path / "r.mp3", TEXT)
    assert voice.duration_s == pytest.approx(6.0 * RATE / 48_000, abs=0.01)
    assert voice.codes.shape[1] == 9


def test_a_transcript_without_tags_is_one_speakers(tmp_path: Path) -> None:
    library = library_of(tmp_path / "voices")
    recording = write_tone(tmp_path / "r.wav")
    plain = library.add_voice_from_audio("a", recording, " The harbor is\n quiet tonight. ")
    assert plain.transcript == "[S1] The harbor is quiet tonight."
    pair = library.add_voice_from_audio("b", recording, "[S1] Is it quiet there? [S2] It is.")
    assert pair.speakers == ("S1", "S2")


def test_a_taken_id_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    library = library_of(tmp_path / "voices", "narrator")
    old = library.get("narrator")
    recording = write_tone(tmp_path / "r.wav", seconds=8.0)
    with pytest.raises(InvalidInput, match=r"voice_id 'narrator' is taken.*overwrite"):
        library.add_voice_from_audio("narrator", recording, TEXT)
    assert library.get("narrator") is old
    new = library.add_voice_from_audio("narrator", recording, TEXT, overwrite=True)
    assert library.get("narrator") is new
    assert new.duration_s == pytest.approx(8.0)
    assert {file.name for file in (tmp_path / "voices").iterdir()} == {"narrator"}
    assert not (tmp_path / "voices" / "narrator" / "audio.flac").exists()


@pytest.mark.parametrize(
    ("seconds", "level", "text", "reason"),
    [
        (0.5, 0.3, TEXT, "too short"),
        (21.0, 0.3, TEXT, "too long"),
        (6.0, 0.0, TEXT, "silent"),
        (6.0, 9.0, TEXT, "clipped"),
        (6.0, 0.3, "", "transcript is missing"),
        (6.0, 0.3, "[S1] ... [S2]", "transcript is missing"),
        (6.0, 0.3, "[S2] Hello there, all of you.", "with [S1]"),
        (6.0, 0.3, "Hello [S2] there, all of you.", "with [S1]"),
        (6.0, 0.3, "[S1] Hello there. [S3] All of you.", "[S3]"),
        (6.0, 0.3, "[s1] Hello there, all of you.", "[s1]"),
        (6.0, 0.3, "Hello\x02 there", "control characters"),
        (6.0, 0.3, "Hello \ud800 there", "control characters"),
        (2.0, 0.3, "word " * 40, "characters a second"),
        (19.0, 0.3, "word " * 110, "at most 512"),
    ],
)
def test_what_cannot_serve_is_refused_with_the_reason_and_nothing_is_written(
    tmp_path: Path, seconds: float, level: float, text: str, reason: str
) -> None:
    library = library_of(tmp_path / "voices", "other")
    recording = write_tone(tmp_path / "r.wav", seconds=seconds, level=level)
    before = files_below(tmp_path)
    with pytest.raises(InvalidReference, match="voice 'mine': ") as caught:
        library.add_voice_from_audio("mine", recording, text)
    assert reason in caught.value.message
    with pytest.raises(InvalidReference) as caught:
        library.clone(recording.read_bytes(), text)
    assert reason in caught.value.message
    assert files_below(tmp_path) == before


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    library = library_of(tmp_path / "voices")
    (tmp_path / "r.wav").write_text("not a recording")
    (tmp_path / "r.exe").write_bytes(b"MZ")
    for name, reason in (("r.wav", "not audio"), ("r.exe", "'.exe'"), ("no.wav", "No such file")):
        with pytest.raises(InvalidReference, match=reason):
            library.add_voice_from_audio("a", tmp_path / name, TEXT)
    assert not (tmp_path / "voices").exists()


def test_a_replacement_that_is_refused_leaves_the_old_voice(tmp_path: Path) -> None:
    library = library_of(tmp_path / "voices", "narrator")
    old = library.get("narrator")
    before = files_below(tmp_path / "voices")
    silent = write_tone(tmp_path / "r.wav", level=0.0)
    with pytest.raises(InvalidReference, match="silent"):
        library.add_voice_from_audio("narrator", silent, TEXT, overwrite=True)
    assert library.get("narrator") is old
    assert files_below(tmp_path / "voices") == before


def test_a_library_that_cannot_be_written_says_so_when_a_voice_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = library_of(tmp_path / "voices", "narrator")
    recording = write_tone(tmp_path / "r.wav")
    before = files_below(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(SetupError, match="cannot be written: Read-only"):
        library.add_voice_from_audio("new", recording, TEXT)
    assert files_below(tmp_path) == before


def test_a_clone_is_a_voice_that_is_kept_nowhere(tmp_path: Path) -> None:
    library = library_of(tmp_path / "voices", "narrator")
    before = files_below(tmp_path)
    recording = (tmp_path / "voices" / "narrator" / "audio.flac").read_bytes()
    clone = library.clone(recording, "The harbor is quiet tonight.")
    assert clone.transcript == "[S1] The harbor is quiet tonight."
    assert torch.equal(clone.codes, library.get("narrator").codes)
    assert [info.voice_id for info in library.list_voices()] == ["narrator"]
    assert clone.voice_id not in library.get_performance_stats()["cached_voices"]
    assert files_below(tmp_path) - before == {
        str(codes_file(tmp_path / "voices", "narrator").relative_to(tmp_path))
    }


def test_the_same_clone_has_the_same_id_and_another_text_another(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    recording = write_tone(tmp_path / "r.wav").read_bytes()
    ids = [library.clone(recording, text).voice_id for text in (TEXT, TEXT, TEXT + " Yes.")]
    assert ids[0] == ids[1] != ids[2]


def test_a_clone_of_unusual_length_or_pace_comes_with_warnings(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    recording = write_tone(tmp_path / "r.wav", seconds=12.0).read_bytes()
    length, pace = library.clone(recording, "Hello there.").warnings
    assert "5 to 10 s are recommended" in length
    assert "is it complete" in pace


def test_the_manifest_of_an_added_voice_can_be_read_by_people(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path, FakeCodec())
    recording = write_tone(tmp_path / "r.wav")
    library.add_voice_from_audio("a", recording, "[S1] Grüße: quiet.", {"name": "Zoë"})
    text = (tmp_path / "a" / "voice.yaml").read_text(encoding="utf-8")
    assert "Zoë" in text
    assert yaml.safe_load(text) == {
        "transcript": "[S1] Grüße: quiet.",
        "metadata": {"name": "Zoë"},
    }

"""What a user gets from the voice library."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.voices.fakes import (
    RATE,
    TEXT,
    FakeCodec,
    files_below,
    library_of,
    write_tone,
    write_voice,
)
from worker.errors import InvalidInput, InvalidReference, UnknownVoice
from worker.voices.library import VoiceLibrary


def test_a_voice_has_all_that_a_prompt_needs(tmp_path: Path) -> None:
    voice = library_of(tmp_path, "narrator").get("narrator")
    assert voice.voice_id == "narrator"
    assert voice.codes.dtype == torch.int64
    assert voice.codes.shape == (-(-6 * RATE // 512), 9)
    assert voice.codes.device.type == "cpu"
    assert voice.transcript == TEXT
    assert voice.speakers == ("S1",)
    assert voice.metadata == {"gender": "male"}
    assert voice.duration_s == pytest.approx(6.0)
    assert voice.processing_time > 0
    assert voice.warnings == ()


def test_a_voice_is_encoded_once_however_often_it_is_used(tmp_path: Path) -> None:
    codec = FakeCodec()
    library = library_of(tmp_path, "narrator", codec=codec)
    first = library.get("narrator")
    assert library.get("narrator") is first
    assert codec.calls == 1


def test_many_asking_at_once_make_one_encoding(tmp_path: Path) -> None:
    codec = FakeCodec(seconds=0.2)
    library = library_of(tmp_path, "a", "b", codec=codec)
    start = threading.Barrier(8)

    def ask(name: str) -> int:
        start.wait()
        return id(library.get(name))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, ["a", "b"] * 4))
    assert codec.calls == 2
    assert codec.at_once == 0, "the codec was used by two threads at a time"
    assert len(set(answers)) == 2


def test_a_voice_in_memory_does_not_wait_for_one_that_is_being_encoded(tmp_path: Path) -> None:
    codec = FakeCodec()
    library = library_of(tmp_path, "known", "new", codec=codec)
    library.get("known")
    inside, go_on = threading.Event(), threading.Event()
    encode = codec.encode

    def slow(waveform: torch.Tensor) -> torch.Tensor:
        inside.set()
        assert go_on.wait(10)
        return encode(waveform)

    codec.encode = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(library.get, "new")
        assert inside.wait(10)
        assert library.get("known").voice_id == "known"
        assert not encoding.done()
        go_on.set()


def test_the_least_recently_used_voice_leaves_the_memory(tmp_path: Path) -> None:
    library = library_of(tmp_path, "a", "b", "c", size=2)
    for name in ("a", "b", "a", "c"):
        library.get(name)
    assert library.get_performance_stats()["cached_voices"] == ["a", "c"]


def test_statistics_count_hits_misses_and_uses(tmp_path: Path) -> None:
    library = library_of(tmp_path, "a", "b")
    assert library.get_performance_stats()["cache_hit_rate"] == 0.0
    for name in ("a", "a", "a", "b"):
        library.get(name)
    with pytest.raises(UnknownVoice):
        library.get("nobody")
    assert library.get_performance_stats() == {
        "hits": 2,
        "misses": 2,
        "cache_hit_rate": 0.5,
        "cached_voices": ["a", "b"],
        "usage_count": {"a": 3, "b": 1},
    }


def test_preloaded_voices_are_hits_from_the_first_job_on(tmp_path: Path) -> None:
    codec = FakeCodec()
    library = library_of(tmp_path, "a", "b", "c", codec=codec)
    library.preload(["a", "b"])
    assert codec.calls == 2
    assert library.get_performance_stats()["usage_count"] == {}
    library.get("a")
    assert library.get_performance_stats()["cache_hit_rate"] == 1.0


def test_preloading_a_voice_that_is_not_there_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownVoice, match="nobody"):
        library_of(tmp_path, "a").preload(["a", "nobody"])


def test_an_unknown_voice_is_answered_with_the_closest_names(tmp_path: Path) -> None:
    library = library_of(tmp_path, "narrator_deep", "narrator_warm", "child")
    with pytest.raises(UnknownVoice, match="'Narator_deep' names no voice") as caught:
        library.get("Narator_deep")
    assert "close are narrator_deep" in caught.value.message
    assert "the library has child, narrator_deep, narrator_warm" in caught.value.message


def test_a_large_library_is_not_listed_whole(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"voice-{number}").mkdir()
        (tmp_path / f"voice-{number}" / "voice.yaml").write_text("transcript: Something said.")
    with pytest.raises(UnknownVoice, match="close are") as caught:
        VoiceLibrary(tmp_path, FakeCodec()).get("voice-99")
    assert len(caught.value.message) < 200


def test_a_library_that_is_not_there_is_empty(tmp_path: Path) -> None:
    library = VoiceLibrary(tmp_path / "nowhere", FakeCodec())
    assert library.list_voices() == []
    with pytest.raises(UnknownVoice, match="the library is empty"):
        library.get("anyone")


@pytest.mark.parametrize(
    "voice_id",
    ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "_a", "-a", "a.b", "a\n", "é", "a" * 65],
)
def test_ids_that_could_leave_the_folder_are_refused(tmp_path: Path, voice_id: str) -> None:
    write_voice(tmp_path, "x")
    library = library_of(tmp_path / "x")
    recording = write_tone(tmp_path / "r.wav")
    before = files_below(tmp_path)
    for attempt in (
        lambda: library.get(voice_id),
        lambda: library.preload([voice_id]),
        lambda: library.add_voice_from_audio(voice_id, recording, TEXT),
    ):
        with pytest.raises(InvalidInput, match="voice_id"):
            attempt()
    assert files_below(tmp_path) == before


def test_the_catalogue_is_read_without_encoding(tmp_path: Path) -> None:
    codec = FakeCodec()
    library = library_of(tmp_path, "b", "a", codec=codec)
    (tmp_path / "README.md").write_text("not a voice")
    (tmp_path / "no voice").mkdir()
    infos = library.list_voices()
    assert [info.voice_id for info in infos] == ["a", "b"]
    assert infos[0].transcript == TEXT
    assert infos[0].speakers == ("S1",)
    assert infos[0].metadata["gender"] == "male"
    assert codec.calls == 0


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ("transcript: [", "YAML"),
        ("", "no transcript"),
        ("transcript: ''", "transcript is missing"),
        ("transcipt: Something.\ntranscript: Something.", "unknown keys: transcipt"),
        ("transcript: Something.\nmetadata: [a]", "metadata"),
        ("transcript: Something.\nmetadata: {a: {b: c}}", "metadata 'a'"),
    ],
)
def test_a_damaged_voice_is_named_and_spoils_no_other(
    tmp_path: Path, manifest: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    library = library_of(tmp_path, "good", "bad")
    (tmp_path / "bad" / "voice.yaml").write_text(manifest)
    with pytest.raises(InvalidReference, match="voice 'bad': ") as caught:
        library.get("bad")
    assert reason in caught.value.message
    assert [info.voice_id for info in library.list_voices()] == ["good"]
    assert "'bad'" in caplog.text


def test_a_voice_without_its_recording_is_named(tmp_path: Path) -> None:
    library = library_of(tmp_path, "narrator")
    (tmp_path / "narrator" / "audio.flac").unlink()
    with pytest.raises(InvalidReference, match=r"voice 'narrator': 0 recordings.*\.wav, \.flac"):
        library.get("narrator")


def test_a_removed_voice_is_unknown_to_the_next_worker(tmp_path: Path) -> None:
    library_of(tmp_path, "a", "b").get("a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UnknownVoice, match="the library has b"):
        VoiceLibrary(tmp_path, FakeCodec()).get("a")

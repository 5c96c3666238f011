"""The voices that come with the worker."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from builder.make_voice import RECIPES, join, trim
from tests.voices.fakes import FakeCodec
from worker.voices.library import VoiceLibrary

SHIPPED = Path(__file__).parents[2] / "voices"
IDS = sorted(file.parent.name for file in SHIPPED.glob("*/voice.yaml"))


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    ignored = shutil.ignore_patterns("codes.*")
    shutil.copytree(SHIPPED, tmp_path / "voices", ignore=ignored)
    return VoiceLibrary(tmp_path / "voices", FakeCodec())


def test_there_is_a_voice_and_all_of_the_catalogue_can_be_read(library: VoiceLibrary) -> None:
    assert IDS
    assert [info.voice_id for info in library.list_voices()] == IDS


@pytest.mark.parametrize("voice_id", IDS)
def test_every_voice_passes_all_checks_without_a_warning(
    library: VoiceLibrary, voice_id: str
) -> None:
    voice = library.get(voice_id)
    assert voice.warnings == ()
    assert 5.0 <= voice.duration_s <= 10.0
    assert voice.transcript.startswith("[S1] ")


@pytest.mark.parametrize("voice_id", IDS)
def test_every_voice_says_what_it_is_and_under_which_licence(
    library: VoiceLibrary, voice_id: str
) -> None:
    metadata = library.get(voice_id).metadata
    assert {"name", "gender", "style", "language", "license", "source"} <= metadata.keys()
    assert metadata["license"] == "Apache-2.0"
    assert f"`{voice_id}`" in (SHIPPED / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("voice_id", IDS)
def test_every_recording_is_mono_small_and_leaves_headroom(voice_id: str) -> None:
    (file,) = (SHIPPED / voice_id).glob("audio.*")
    waveform, rate = soundfile.read(file)
    assert file.stat().st_size < 400_000
    assert waveform.ndim == 1
    assert rate >= 24_000
    assert 20 * np.log10(np.abs(waveform).max()) == pytest.approx(-3.0, abs=0.1)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.voice_id)
def test_every_recipe_says_what_the_manifest_says(library: VoiceLibrary, recipe: object) -> None:
    spoken = " ".join(recipe.sentences)  # type: ignore[attr-defined]
    voice = library.get(recipe.voice_id)  # type: ignore[attr-defined]
    assert voice.transcript == f"[S1] {spoken}"


def test_trimming_keeps_a_margin_and_joining_sets_the_peak() -> None:
    word = np.concatenate([np.zeros(24_000), np.ones(12_000) * 0.2, np.zeros(24_000)])
    trimmed = trim(word.astype(np.float32))
    assert len(trimmed) == pytest.approx(12_000 + 2 * 0.08 * 24_000, abs=2)
    joined = join([trimmed, trimmed])
    assert np.abs(joined).max() == pytest.approx(10 ** (-3 / 20), abs=1e-4)

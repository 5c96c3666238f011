"""What users get who send a recording of a voice: a clone of it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.service.jobs import Answer, audio_of, run
from worker.audio.decode import read_audio
from worker.dia.tokenizer import encode_text
from worker.engine.sequence import Sequence
from worker.errors import UnknownVoice
from worker.service import Service

CLONE_TEXT = "The quick brown fox jumps over the lazy dog near the river bank."


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording that has nothing to do with this worker: another synthesiser's."""
    file = tmp_path_factory.mktemp("recording") / "speech.wav"
    if espeak := shutil.which("espeak-ng"):
        command = [espeak, "-w", str(file), CLONE_TEXT]
    elif flite := shutil.which("flite"):
        command = [flite, "-t", CLONE_TEXT, "-o", str(file)]
    else:
        pytest.skip("neither espeak-ng nor flite is installed")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return file


@pytest.fixture(scope="module")
def stereo_mp3(synthesised: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recording") / "speech.mp3"
    mono = read_audio(synthesised, 48_000)
    soundfile.write(file, np.stack([mono, 0.5 * mono], axis=1), 48_000, format="MP3")
    return file


def clone(service: Service, recording: Path, text: str, **fields: Any) -> Answer:
    encoded = base64.b64encode(recording.read_bytes()).decode()
    return run(service, reference_audio=encoded, reference_text=text, **fields)


def check_clone(service: Service, recording: Path, text: str, used: dict[int, Sequence]) -> None:
    result = clone(service, recording, text, seed=31)
    voice = service.voices.clone(recording.read_bytes(), text)
    assert torch.equal(used[31].prompt, voice.codes)
    assert voice.codes.shape[0] >= 86
    assert used[31].text_ids == encode_text(f"[S1] {text} Hello there.")
    assert result["voice_id"] is None
    assert result["audio_length"] > 0


def test_the_recording_of_a_shipped_voice_can_be_cloned(
    service: Service, voice_folder: Path, submitted: dict[int, Sequence]
) -> None:
    text = service.voices.get("narrator_deep").transcript.removeprefix("[S1] ")
    check_clone(service, voice_folder / "narrator_deep" / "audio.flac", text, submitted)


def test_a_clone_of_a_library_s_recording_speaks_as_that_voice_does(
    service: Service, voice_folder: Path
) -> None:
    text = service.voices.get("narrator_deep").transcript
    cloned = clone(service, voice_folder / "narrator_deep" / "audio.flac", text)
    assert audio_of(cloned) == audio_of(run(service, voice_id="narrator_deep"))


def test_a_recording_of_another_synthesiser_can_be_cloned(
    service: Service, synthesised: Path, submitted: dict[int, Sequence]
) -> None:
    check_clone(service, synthesised, CLONE_TEXT, submitted)


def test_a_stereo_mp3_at_another_rate_can_be_cloned(
    service: Service, stereo_mp3: Path, submitted: dict[int, Sequence]
) -> None:
    info = soundfile.info(stereo_mp3)
    assert (info.samplerate, info.channels) == (48_000, 2)
    check_clone(service, stereo_mp3, CLONE_TEXT, submitted)


def test_what_is_not_as_recommended_about_a_recording_is_told(
    service: Service, synthesised: Path
) -> None:
    warnings = clone(service, synthesised, CLONE_TEXT)["warnings"]
    assert any("s are recommended" in warning for warning in warnings)


def test_an_unknown_voice_is_refused_before_anything_is_generated(
    service: Service, submitted: dict[int, Sequence]
) -> None:
    with pytest.raises(UnknownVoice):
        run(service, voice_id="narrator_worm")
    assert not submitted

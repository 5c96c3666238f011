"""Which recordings may serve as a voice, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.audio.check import check_reference
from worker.errors import InvalidReference

RATE = 44_100


def tone(seconds: float, level: float = 0.3) -> NDArray[np.float32]:
    t = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 220 * t)).astype(np.float32)


@pytest.mark.parametrize("seconds", [5.0, 7.5, 10.0])
def test_a_recording_of_the_recommended_length_gets_no_warning(seconds: float) -> None:
    assert check_reference(tone(seconds), RATE) == []


@pytest.mark.parametrize("seconds", [1.0, 4.9, 10.1, 20.0])
def test_other_lengths_are_accepted_with_a_warning(seconds: float) -> None:
    (warning,) = check_reference(tone(seconds), RATE)
    assert f"{seconds:.2f} s" in warning
    assert "5 to 10 s are recommended" in warning


@pytest.mark.parametrize(("seconds", "word"), [(0.0, "short"), (0.99, "short"), (20.1, "long")])
def test_too_short_and_too_long_are_refused_with_both_lengths(seconds: float, word: str) -> None:
    with pytest.raises(InvalidReference, match=f"too {word}") as caught:
        check_reference(tone(seconds), RATE)
    assert f"{seconds:.2f} s" in caught.value.message
    assert "1 to 20 s" in caught.value.message


def test_the_limits_can_be_set() -> None:
    with pytest.raises(InvalidReference, match="2 to 4 s"):
        check_reference(tone(5.0), RATE, min_seconds=2.0, max_seconds=4.0)


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.003])
def test_silence_is_refused_with_its_level(level: float) -> None:
    with pytest.raises(InvalidReference, match=r"silent.*dBFS.*-50 dBFS"):
        check_reference(tone(6.0, level), RATE)


def test_quiet_speech_is_not_silence() -> None:
    assert check_reference(tone(6.0, 0.01), RATE) == []


def test_a_clipped_recording_is_refused_with_its_share() -> None:
    with pytest.raises(InvalidReference, match=r"clipped: \d+\.\d+%.*0\.1%"):
        check_reference(np.clip(tone(6.0, 3.0), -1, 1), RATE)


def test_loud_peaks_of_one_sample_are_not_clipping() -> None:
    waveform = tone(6.0)
    waveform[::50] = 1.0
    assert check_reference(waveform, RATE) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(bad: float) -> None:
    waveform = tone(6.0)
    waveform[1000] = bad
    with pytest.raises(InvalidReference, match="not finite"):
        check_reference(waveform, RATE)

"""Whether a recording can serve as a voice: long enough, short enough, audible, not clipped.

Knows levels and seconds. Knows nothing of transcripts or of where the recording came from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worker.errors import InvalidReference

MIN_SECONDS = 1.0
MAX_SECONDS = 20.0
RECOMMENDED_SECONDS = (5.0, 10.0)
SILENCE_DBFS = -50.0  # RMS of the whole recording
FULL_SCALE = 0.999
CLIPPED_SHARE = 0.001  # of the samples
CLIPPED_RUN = 3  # samples; loud but clean peaks touch full scale for one or two


def check_reference(
    waveform: NDArray[np.float32],
    sample_rate: int,
    min_seconds: float = MIN_SECONDS,
    max_seconds: float = MAX_SECONDS,
) -> list[str]:
    """Refuses a recording that cannot serve; warns of one that serves badly.

    Args:
        waveform: [N] float32, mono.
        sample_rate: Hz.
        min_seconds: shortest that is accepted.
        max_seconds: longest that is accepted.

    Returns:
        Warnings, for people; empty where all is as recommended.

    Raises:
        InvalidReference: naming what was measured and what is valid.
    """
    warnings = check_length(len(waveform) / sample_rate, min_seconds, max_seconds)
    if not np.isfinite(waveform).all():
        raise InvalidReference("the recording holds samples that are not finite (NaN or infinity)")
    _check_level(waveform)
    _check_clipping(waveform)
    return warnings


def check_length(
    seconds: float, min_seconds: float = MIN_SECONDS, max_seconds: float = MAX_SECONDS
) -> list[str]:
    """The part of `check_reference` that needs no samples; same result, same errors."""
    if not min_seconds <= seconds <= max_seconds:
        size = "short" if seconds < min_seconds else "long"
        raise InvalidReference(
            f"the recording is too {size}: it lasts {seconds:.2f} s, "
            f"valid are {min_seconds:g} to {max_seconds:g} s"
        )
    low, high = RECOMMENDED_SECONDS
    if low <= seconds <= high:
        return []
    return [f"the recording lasts {seconds:.2f} s; {low:g} to {high:g} s are recommended"]


def _check_level(waveform: NDArray[np.float32]) -> None:
    rms = float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
    level = 20 * np.log10(max(rms, 1e-10))
    if level < SILENCE_DBFS:
        raise InvalidReference(
            f"the recording is silent: its RMS level is {level:.1f} dBFS, "
            f"at least {SILENCE_DBFS:g} dBFS are needed"
        )


def _check_clipping(waveform: NDArray[np.float32]) -> None:
    share = _clipped_samples(waveform) / len(waveform)
    if share > CLIPPED_SHARE:
        raise InvalidReference(
            f"the recording is clipped: {share:.2%} of its samples lie in runs at full scale, "
            f"at most {CLIPPED_SHARE:.1%} may"
        )


def _clipped_samples(waveform: NDArray[np.float32]) -> int:
    """How many samples lie in runs of `CLIPPED_RUN` or more at full scale."""
    full = np.concatenate(([False], np.abs(waveform) >= FULL_SCALE, [False]))
    edges = np.flatnonzero(full[1:] != full[:-1])
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= CLIPPED_RUN].sum())

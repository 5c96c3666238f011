"""Speech of further voices, for evaluation and as further speakers: Kokoro, made beforehand.

Kokoro's weights are too large to travel with the rest, so a few sentences in each of several
voices travel instead.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import numpy as np

from builder.make_voice import SAMPLE_RATE, Speaker, read_styles
from builder.train_tiny.config import TRAIN
from builder.train_tiny.recordings import Entry
from builder.train_tiny.sound import level, to_int16, trim
from builder.train_tiny.tools import EXTRA_INDEX, EXTRA_SOUND, Line

logger = logging.getLogger(__name__)

STYLES = (
    "af_bella", "am_puck", "af_nicole", "am_fenrir", "bf_emma", "bm_george", "af_sarah",
    "am_eric", "bf_isabella", "bm_lewis",
)  # fmt: skip


def make_extra(lines: list[Line], styles: Path, seconds: float, tools: Path) -> None:
    """Writes about `seconds` of speech, sentence by sentence in the next voice."""
    speaker = Speaker()
    entries: list[Entry] = []
    pieces = []
    start = 0
    turn = cycle(STYLES)
    for line in (line for line in lines if line.use == TRAIN):
        if start >= seconds * SAMPLE_RATE:
            break
        style = next(turn)
        sound = speaker.say(line.text, read_styles(styles / f"{style}.bin"), 1.0)
        piece = to_int16(level(trim(sound, SAMPLE_RATE)))
        entries.append(Entry(line.text, style, SAMPLE_RATE, start, len(piece), line.use))
        pieces.append(piece)
        start += len(piece)
    np.savez_compressed(tools / EXTRA_SOUND, sound=np.concatenate(pieces))
    (tools / EXTRA_INDEX).write_text(json.dumps([asdict(entry) for entry in entries]) + "\n")
    logger.info("%d sentences of %d further voices, %.0f s", len(entries), len(STYLES), seconds)

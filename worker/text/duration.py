"""How long a text is when spoken, non-verbals included."""

from __future__ import annotations

import math
import re

from worker.text.turns import TAG

NON_VERBALS = frozenset(
    {
        "applause", "beep", "burps", "chuckle", "claps", "clears throat", "coughs", "exhales",
        "gasps", "groans", "humming", "inhales", "laughs", "mumbles", "screams", "sighs",
        "singing", "sings", "sneezes", "sniffs", "whistles",
    }
)  # fmt: skip
"""Sounds that Dia makes when their name stands in parentheses: `(laughs)`."""

NON_VERBAL = re.compile(rf"\((?:{'|'.join(sorted(NON_VERBALS))})\)", re.IGNORECASE)

CHARACTERS_PER_SECOND = 15  # of unhurried English, spaces included
FRAMES_PER_SECOND = 44_100 / 512  # sample rate over the codec's hop: 86.13
FRAMES_PER_CHARACTER = FRAMES_PER_SECOND / CHARACTERS_PER_SECOND


def spoken_characters(text: str) -> int:
    """Length of a text without tags as speech, in characters; a non-verbal counts one second."""
    length = len(text)
    if "(" in text:
        for sound in NON_VERBAL.finditer(text):
            length += CHARACTERS_PER_SECOND - len(sound[0])
    return length


def estimate_frames(text: str) -> int:
    """Codec frames that `text` takes when spoken; tags and the spaces around them count nothing."""
    spoken = sum(spoken_characters(part.strip()) for part in TAG.split(text)[::2])
    return math.ceil(spoken * FRAMES_PER_CHARACTER)

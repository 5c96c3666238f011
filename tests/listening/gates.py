"""What dia-tiny and its codec must reach, each limit once.

A gate is the limit that a test holds; a goal is what the training aims at, and is only reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """One limit on one number."""

    name: str
    limit: float
    at_most: bool = False  # else at least
    goal: float | None = None
    unit: str = ""  # "%": the number is a share

    def passes(self, value: float) -> bool:
        """Whether a number is good enough; NaN never is."""
        return value <= self.limit if self.at_most else value >= self.limit

    def shown(self, value: float) -> str:
        """A number in the gate's unit."""
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f}{self.unit}"

    def says(self, value: float) -> str:
        """The number, and whether it passes."""
        relation = "at most" if self.at_most else "at least"
        verdict = "passes" if self.passes(value) else "FAILS"
        return (
            f"{verdict}: {self.name} {self.shown(value)}, must be {relation} "
            f"{self.shown(self.limit)}"
        )


def said(values: Mapping[Gate, float]) -> str:
    """All numbers, each with its limit."""
    return "; ".join(gate.says(value) for gate, value in values.items())


def require(values: Mapping[Gate, float], details: object = "") -> None:
    """Fails the test unless every number passes; its message has all of them."""
    if not all(gate.passes(value) for gate, value in values.items()):
        raise AssertionError(f"{said(values)} {details}")


# Of the model: single sentences of 3 to 12 s
SENTENCE_WORDS = Gate("word errors, single sentences", 0.15, at_most=True, goal=0.08, unit="%")
SENTENCE_QUALITY = Gate("DistillMOS, whole sentences", 2.8, goal=3.6)
ENDINGS = Gate("generations that end by themselves", 0.95, unit="%")

# Of the model: 1,500 characters in chunks
LONG_TEXT_WORDS = Gate("word errors, 1,500 characters in chunks", 0.18, at_most=True, unit="%")
MISSING_CHUNKS = Gate("chunks missing", 0, at_most=True)
KEPT_VOICE = Gate("similarity to the voice prompt, worst chunk", 0.75)

# Of the model: dialogues of two
SAME_SPEAKER = Gate("similarity within a speaker, worst pair of turns", 0.75)
OTHER_SPEAKER = Gate("similarity between speakers, closest pair of turns", 0.65, at_most=True)
TOLD_APART = Gate("dialogues whose speakers are told apart", 0.9, unit="%")

# Of the codec alone, on voices that it was not trained on
CODEC_WORDS = Gate("word errors that the codec adds", 0.03, at_most=True, unit="%")
CODEC_QUALITY = Gate("DistillMOS, codec alone", 3.0, goal=3.8)

# Timed, never asserted
SPEED = Gate("speed on 2 cores", 1.0, unit=" × realtime")

# Of any speech, so that what passes the others is speech at all
SPEECH = Gate("share of the time with speech", 0.6, unit="%")

# What the gates are about
LONG_TEXT_CHARACTERS = 1500
KEPT_CHUNKS = 8  # the first so many must keep the voice of the prompt
SHORTEST_TURN_S = 2.0  # whole turns; in less no voice is recognised
LOST_WORDS = 0.5  # a chunk of which more than half is wrong counts as missing

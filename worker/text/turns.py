"""Normalisation, speaker turns, and the text of one generation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from worker.errors import InvalidInput

Speaker = Literal["S1", "S2"]

# As people write tags. `[S 1]` is no tag: a bracket of the user's own could then become one when
# two turns of one speaker are joined by a space.
TAG = re.compile(r"\[\s*[sS](\d+)\s*\]")

_ZERO_WIDTH = (
    "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff\ufff9\ufffa\ufffb"
)
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_LONE_SURROGATES = range(0xD800, 0xE000)  # JSON can smuggle them in; UTF-8 cannot hold them
_ASCII = {
    **dict.fromkeys(map(ord, _ZERO_WIDTH)),
    **dict.fromkeys([*_CONTROLS, *_LONE_SURROGATES], " "),
    **dict.fromkeys(map(ord, "“”„‟«»〝〞〟＂"), '"'),
    **dict.fromkeys(map(ord, "‘’‚‛‹›ʼ＇"), "'"),
    ord("…"): "...",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says before the other one speaks; `text` holds no tags."""

    speaker: Speaker
    text: str


def normalise(text: str) -> str:
    """`text` in the alphabet that the rest of the worker relies on; nothing spoken is dropped.

    NFC; typographic quotes and the ellipsis character in ASCII; one space for any run of
    whitespace and control characters, none at the ends; no zero-width characters; speaker tags
    written `[S1]` and `[S2]`. Doing it twice changes nothing.

    Raises:
        InvalidInput: if there is a tag of any other speaker, or nothing but tags and whitespace.
    """
    # Zero-width characters go first: a combining mark behind one then composes with its letter.
    text = unicodedata.normalize("NFC", text.translate(_ASCII))
    text = TAG.sub(_canonical_tag, " ".join(text.split()))
    if not TAG.sub("", text).strip():
        raise InvalidInput("text is empty: it has to hold something to say besides speaker tags")
    return text


def _canonical_tag(tag: re.Match[str]) -> str:
    if tag[1] not in ("1", "2"):
        raise InvalidInput(f"text holds the speaker tag {tag[0]}; valid tags are [S1] and [S2]")
    return f"[S{tag[1]}]"


def parse_turns(text: str) -> list[Turn]:
    """Who says what, in order; speakers alternate.

    What comes before the first tag is `S1`'s. Turns without text are dropped, and turns of one
    speaker that then follow each other are joined by a space. `text` need not be normalised.

    Raises:
        InvalidInput: as `normalise`.
    """
    # The tag pattern has one group, so this is: text, number, text, number, text, ...
    parts = TAG.split(normalise(text))
    numbers = ["1", *parts[1::2]]
    turns = _merge(
        Turn(cast(Speaker, f"S{number}"), part.strip())
        for number, part in zip(numbers, parts[::2], strict=True)
    )
    # `[ [S1] S2]` leaves `[ S2]` behind once its inner tag is gone.
    if any(TAG.search(turn.text) for turn in turns):
        return parse_turns(render(turns))
    return turns


def _merge(turns: Iterable[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        if not turn.text:
            continue
        if merged and merged[-1].speaker == turn.speaker:
            merged[-1] = Turn(turn.speaker, f"{merged[-1].text} {turn.text}")
        else:
            merged.append(turn)
    return merged


def render(turns: Iterable[Turn]) -> str:
    """`[S1] a. [S2] b.`, with a tag only where the speaker changes."""
    return " ".join(f"[{turn.speaker}] {turn.text}" for turn in _merge(turns))


def begins_with_s1(turns: Sequence[Turn]) -> bool:
    """Whether the model can read `turns` as a whole text; it was trained on nothing else."""
    return bool(turns) and turns[0].speaker == "S1"


def rename_speakers(turns: Iterable[Turn]) -> list[Turn]:
    """`turns` with the two speakers' names exchanged.

    For a whole text that begins with `[S2]` and has no voice prompt: who `S1` is, is then free.
    """
    return [Turn("S2" if turn.speaker == "S1" else "S1", turn.text) for turn in turns]


def model_text(prompt_turns: Iterable[Turn], chunk_turns: Iterable[Turn]) -> str:
    """All that the model reads for one generation.

    The transcript of the voice prompt, then what is to be said; tags alternate. Where two speak,
    the tag of the second-to-last speaker closes the text, which makes for a cleaner ending
    (nari-labs/dia, README, "Generation Guidelines").

    Raises:
        ValueError: if the text would not begin with `[S1]`; the caller has to see to that.
    """
    turns = _merge([*prompt_turns, *chunk_turns])
    if not begins_with_s1(turns):
        raise ValueError("the model's text has to begin with [S1]")
    closing = f" [{turns[-2].speaker}]" if len(turns) > 1 else ""
    return render(turns) + closing

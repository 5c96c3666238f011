"""Where one turn may be broken, from sentences down to characters.

Each level is used only inside what the level above left too long for a chunk of its own: a
sentence that fits is never broken.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

from sentencex import segment  # type: ignore[import-untyped]

from worker.text.duration import NON_VERBAL, spoken_characters

_LANGUAGE = "en"  # Dia speaks nothing else

_CLAUSE_END = re.compile(
    r"""(?: (?: [,;:] | \.\.\. | [-–] ) ["')\]]* (?=\s)   # not in "1,000", "10:30", "well-known"
          | (?: [，、；：—] | -- ) ["')\]]*                # these need no space behind them
        ) \s*""",
    re.VERBOSE,
)
_WORD = re.compile(rf"(?:{NON_VERBAL.pattern}|\S)+\s*", re.IGNORECASE)
_CHARACTER = re.compile(rf"{NON_VERBAL.pattern}|.", re.IGNORECASE | re.DOTALL)
# What hides sentence ends from the segmenter; not the apostrophe of "don't".
_QUOTE = re.compile(r"""["()\[\]]|(?<!\w)'|'(?!\w)""")
_OPENING_QUOTES = "\"'(["


class Break(IntEnum):
    """What ends where a text is broken, from the best place to the worst."""

    TURN = 0
    SENTENCE = 1
    QUOTED_SENTENCE = 2  # within quotes or parentheses, which make one sentence of several
    CLAUSE = 3
    WORD = 4
    CHARACTER = 5  # with its combining marks
    CODE_POINT = 6  # only where the marks on one letter are too long for a chunk


class Piece(NamedTuple):
    """`text[start:end]` of a turn, the whitespace behind it included; what kind of end it has."""

    start: int
    end: int
    ends: Break


@dataclass(frozen=True, slots=True)
class Room:
    """What the text of one turn may measure to fit into a chunk alone; its tag not counted."""

    characters: int
    utf8_bytes: int
    spoken: int
    grain: int  # characters: smaller parts are bundled up to this, which bounds their number;
    # at most a quarter of each of the above, as a character has up to four bytes

    def holds(self, text: str) -> bool:
        """Whether `text` fits."""
        text = text.rstrip()
        return (
            len(text) <= self.characters
            and len(text.encode()) <= self.utf8_bytes
            and spoken_characters(text) <= self.spoken
        )


def split_turn(text: str, room: Room) -> list[Piece]:
    """The sentences of a turn in order; of those too long for `room`, the parts.

    The pieces cover `text` without gaps, each fits `room`, and none ends within a non-verbal.

    Args:
        text: normalised, without tags.
        room: at least as large as the longest non-verbal.
    """
    pieces: list[Piece] = []
    _descend(text, Piece(0, len(text), Break.TURN), Break.SENTENCE, room, pieces)
    return pieces


def _descend(text: str, whole: Piece, level: Break, room: Room, pieces: list[Piece]) -> None:
    """Append the parts of `whole` at `level`, and of those too long the parts below."""
    start = whole.start
    for length in _ends(text[start : whole.end], level, room.grain):
        end = whole.start + length
        part = Piece(start, end, whole.ends if end == whole.end else level)
        if room.holds(text[start:end]):
            pieces.append(part)
        else:
            _descend(text, part, Break(level + 1), room, pieces)
        start = end


def _ends(text: str, level: Break, grain: int) -> list[int]:
    """Offsets behind each part of `text`, the last one included."""
    ends = _SPLITTERS[level](text)
    if level in (Break.SENTENCE, Break.QUOTED_SENTENCE):
        ends = _outside_non_verbals(text, ends)
    return _bundle(text, ends, grain)


def _sentence_ends(text: str) -> list[int]:
    # The segmenter returns slices of its input that add up to it, whitespace included.
    return list(accumulate(len(sentence) for sentence in segment(_LANGUAGE, text)))


def _quoted_sentence_ends(text: str) -> list[int]:
    """Sentence ends as they are once quotes and parentheses are out of sight."""
    ends = _sentence_ends(_QUOTE.sub(" ", text))
    return [_before_opening_quote(text, end) for end in ends]


def _before_opening_quote(text: str, end: int) -> int:
    """`end`, moved in front of a quote that looked like the space behind the sentence."""
    start = end
    while start and text[start - 1] in _OPENING_QUOTES:
        start -= 1
    return start if text[start - 1 : start].isspace() else end


def _outside_non_verbals(text: str, ends: list[int]) -> list[int]:
    inside = {
        offset
        for sound in NON_VERBAL.finditer(text)
        for offset in range(sound.start() + 1, sound.end())
    }
    return [end for end in ends if end not in inside]


def _clause_ends(text: str) -> list[int]:
    return [clause.end() for clause in _CLAUSE_END.finditer(text)]


def _word_ends(text: str) -> list[int]:
    return [word.end() for word in _WORD.finditer(text)]


def _character_ends(text: str) -> list[int]:
    return [end for end in _code_points(text) if not _extends(text[end : end + 1])]


def _code_points(text: str) -> list[int]:
    """Ends of code points, with non-verbals as one."""
    return [character.end() for character in _CHARACTER.finditer(text)]


def _extends(character: str) -> bool:
    """Whether `character` belongs to the one before it: combining marks and skin tones."""
    return character != "" and (
        unicodedata.category(character).startswith("M") or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def _bundle(text: str, ends: list[int], grain: int) -> list[int]:
    """`ends` thinned out: neighbouring parts are one as long as they are no larger than a grain.

    The last part ends with the text, and a space belongs to the part before it.
    """
    behind_space = (end + text.startswith(" ", end) for end in ends)
    bundled: list[int] = []
    start = previous = 0
    for end in [*(end for end in behind_space if end < len(text)), len(text)]:
        if previous > start and end - start > grain:
            bundled.append(previous)
            start = previous
        previous = end
    return [*bundled, len(text)]


_SPLITTERS: dict[Break, Callable[[str], list[int]]] = {
    Break.SENTENCE: _sentence_ends,
    Break.QUOTED_SENTENCE: _quoted_sentence_ends,
    Break.CLAUSE: _clause_ends,
    Break.WORD: _word_ends,
    Break.CHARACTER: _character_ends,
    Break.CODE_POINT: _code_points,
}

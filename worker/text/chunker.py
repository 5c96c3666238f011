"""Long text to chunks, one generation of the model each.

The turns are cut into atoms (see `split`), and a dynamic programme over the atoms, as in breaking
a paragraph into lines, picks the chunks: as few as possible, then even ones with good endings.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from worker.errors import InvalidInput
from worker.text.duration import FRAMES_PER_CHARACTER, estimate_frames, spoken_characters
from worker.text.split import Break, Room, split_turn
from worker.text.turns import Speaker, Turn, parse_turns, render

MIN_CHUNK_SIZE = 40
MAX_CHUNK_SIZE = 500
TINY = 20
"""Spoken characters; fewer are no chunk of their own where that can be helped."""
TINY_ALLOWANCE = TINY + len(" [S1] ")
"""Characters by which a chunk may exceed `chunk_size` to spare a neighbour from being tiny."""
RESERVED_BYTES = len(b" ") + len(b" \x01")
"""The space behind a prompt's transcript, and the closing tag with its space."""

# In front of a chunk's first turn, in characters and in the model's bytes; turns within a chunk
# have one more space.
_TAG_CHARACTERS = len("[S1] ")
_TAG_BYTES = len(b"\x01 ")

_SOFT_TURNS = 4  # what Dia was trained for
_SOFT_SPOKEN = 75  # 5 s: shorter generations sound unnatural

# Costs. One chunk outweighs any sum of raggedness and bad endings. An oversized chunk saves at
# most one other, so at more than one chunk's cost it is only ever made to spare a tiny one.
_CHUNK = 1e6
_OVERSIZE = 1.5 * _CHUNK
_TINY_CHUNK = 8 * _CHUNK
_ENDING = {
    Break.TURN: 0.0,
    Break.SENTENCE: 0.1,
    Break.QUOTED_SENTENCE: 0.15,
    Break.CLAUSE: 0.3,
    Break.WORD: 0.6,
    Break.CHARACTER: 1.0,
    Break.CODE_POINT: 1.5,
}
_EXTRA_TURN = 0.1

# Neighbours that are together smaller than a 12th of a chunk are one atom, which bounds the
# programme's work whatever the text looks like, and costs at most that part of a chunk's room.
_GRAINS = 12
_MIN_GRAIN = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one generation says."""

    index: int
    turns: tuple[Turn, ...]

    @property
    def text(self) -> str:
        """The turns with their tags; this is what `chunk_size` counts."""
        return render(self.turns)

    @property
    def speakers(self) -> tuple[Speaker, ...]:
        """Who speaks, in the order of their first words."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    @property
    def first_speaker(self) -> Speaker:
        """Who speaks first."""
        return self.turns[0].speaker

    @property
    def last_speaker(self) -> Speaker:
        """Who speaks last."""
        return self.turns[-1].speaker

    @property
    def frames(self) -> int:
        """Codec frames that it takes, estimated."""
        return estimate_frames(self.text)


@dataclass(frozen=True, slots=True)
class _Atom:
    """A stretch of one turn that is never broken."""

    turn: int
    text: str  # trailing space included
    ends: Break


class TextChunker:
    """Cuts text into chunks that each fit one generation.

    Args:
        max_bytes: what the voice prompt's transcript leaves of the model's 1024 bytes. A chunk's
            text, with one byte a tag as the model counts it, takes at most this less
            `RESERVED_BYTES`: prompt, joining space, chunk and closing tag fit together.
        max_frames: what the voice prompt leaves of the decoder's 3072 positions, less the 15 of
            the delay pattern. A chunk's `estimate_frames` is at most this.

    Raises:
        InvalidInput: if either leaves room for fewer than `MIN_CHUNK_SIZE` characters.
    """

    def __init__(self, *, max_bytes: int = 1024, max_frames: int = 3072 - 15) -> None:
        self.max_bytes = max_bytes
        self.max_frames = max_frames
        self._bytes = max_bytes - RESERVED_BYTES
        self._spoken = _spoken_limit(max_frames)
        if min(self._bytes, self._spoken) < MIN_CHUNK_SIZE:
            raise InvalidInput(
                f"the voice prompt leaves no room for text: {max(self._bytes, 0)} bytes and "
                f"{max_frames} frames (about {self._spoken} characters) are left, at least "
                f"{MIN_CHUNK_SIZE} characters are needed"
            )

    def chunk_text_by_sentences(
        self, text: str, chunk_size: int = 120, allow_multiple_speakers: bool = True
    ) -> list[Chunk]:
        """The chunks of `text`, in order; every character stays with its speaker.

        A chunk's text has at most `chunk_size` characters, tags included. It may have up to
        `TINY_ALLOWANCE` (26) more where that spares a chunk of fewer than `TINY` spoken
        characters; such a chunk remains only where it fits no neighbour even so. The limits of
        the constructor hold always. Sentences that fit are kept whole; longer ones are broken at
        sentence ends within quotes, clauses, words, and at last characters, known non-verbals
        never.

        Args:
            text: as the user wrote it.
            chunk_size: characters, `MIN_CHUNK_SIZE` to `MAX_CHUNK_SIZE`.
            allow_multiple_speakers: whether turns share chunks. If so, four turns a chunk are
                preferred where that leaves each chunk 5 s of speech; if not, every chunk has one
                speaker.

        Raises:
            InvalidInput: if `chunk_size` is out of range, or the text is not valid (`normalise`).
        """
        if not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
            raise InvalidInput(
                f"chunk_size is {chunk_size}; valid are {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}"
            )
        turns = parse_turns(text)
        atoms = self._atoms(turns, chunk_size)
        ends = _Programme(atoms, chunk_size, self._bytes, self._spoken).solve(
            allow_multiple_speakers
        )
        starts = [0, *ends[:-1]]
        return [
            Chunk(index, _turns_of(atoms[start:end], turns))
            for index, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]

    def _atoms(self, turns: Sequence[Turn], chunk_size: int) -> list[_Atom]:
        characters = chunk_size - _TAG_CHARACTERS
        utf8_bytes = self._bytes - _TAG_BYTES
        grain = max(_MIN_GRAIN, min(characters, utf8_bytes, self._spoken) // _GRAINS)
        room = Room(characters, utf8_bytes, self._spoken, grain)
        return [
            _Atom(number, turn.text[piece.start : piece.end], piece.ends)
            for number, turn in enumerate(turns)
            for piece in split_turn(turn.text, room)
        ]


def _spoken_limit(max_frames: int) -> int:
    """The most spoken characters whose `estimate_frames` is within `max_frames`."""
    limit = max(0, math.floor(max_frames / FRAMES_PER_CHARACTER) + 1)
    while limit > 0 and math.ceil(limit * FRAMES_PER_CHARACTER) > max_frames:
        limit -= 1
    return limit


def _turns_of(atoms: Sequence[_Atom], turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(
        Turn(turns[number].speaker, "".join(atom.text for atom in same).strip())
        for number, same in groupby(atoms, key=lambda atom: atom.turn)
    )


class _Ruler:
    """Where atoms begin and end on a line on which all turns are written one after another.

    Measures of a chunk are differences of two of its marks.
    """

    def __init__(self, atoms: Sequence[_Atom], sizes: Sequence[int], gap: int, tag: int) -> None:
        """`sizes` without trailing spaces; `gap` is the size of a space, `tag` that of a tag."""
        self.begins: list[int] = []
        self.ends: list[int] = []
        position = 0
        turn = 0
        for atom, size in zip(atoms, sizes, strict=True):
            if atom.turn != turn:
                position += tag
                turn = atom.turn
            self.begins.append(position)
            self.ends.append(position + size)
            position += size + (gap if atom.text.endswith(" ") else 0)

    def earliest(self, last: int, room: int) -> int:
        """The first atom from which on to the end of atom `last` it is at most `room`."""
        return bisect_left(self.begins, self.ends[last] - room)


class _Programme:
    """The cheapest way to pack atoms into chunks."""

    def __init__(
        self, atoms: Sequence[_Atom], chunk_size: int, max_bytes: int, max_spoken: int
    ) -> None:
        texts = [atom.text.rstrip() for atom in atoms]
        self._turns = [atom.turn for atom in atoms]
        self._endings = [_ENDING[atom.ends] for atom in atoms]
        self._characters = _Ruler(atoms, [len(text) for text in texts], 1, 1 + _TAG_CHARACTERS)
        self._bytes = _Ruler(atoms, [len(text.encode()) for text in texts], 1, 1 + _TAG_BYTES)
        self._spoken = _Ruler(atoms, [spoken_characters(text) for text in texts], 1, 0)
        self._size = chunk_size - _TAG_CHARACTERS
        self._max_bytes = max_bytes - _TAG_BYTES
        self._max_spoken = max_spoken

    def solve(self, allow_multiple_speakers: bool) -> list[int]:
        """The ends of the chunks, as numbers of atoms."""
        best = [0.0]  # what the cheapest chunks cost that hold the first 0, 1, 2, ... atoms
        starts = [0]  # where the last one of those begins
        for last in range(len(self._turns)):
            cost, start = self._cheapest(last, best, self._earliest(last, allow_multiple_speakers))
            best.append(cost)
            starts.append(start)
        ends = []
        end = len(self._turns)
        while end:
            ends.append(end)
            end = starts[end]
        return ends[::-1]

    def _earliest(self, last: int, allow_multiple_speakers: bool) -> int:
        """The first atom that a chunk can begin with if it ends with `last`, by every limit."""
        start = max(
            self._characters.earliest(last, self._size + TINY_ALLOWANCE),
            self._bytes.earliest(last, self._max_bytes),
            self._spoken.earliest(last, self._max_spoken),
        )
        if allow_multiple_speakers:
            return start
        return max(start, bisect_left(self._turns, self._turns[last]))

    def _cheapest(self, last: int, best: Sequence[float], earliest: int) -> tuple[float, int]:
        """The cheapest chunks up to atom `last`: their cost, and where the last chunk begins."""
        characters, spoken = self._characters.begins, self._spoken.begins
        characters_end, spoken_end = self._characters.ends[last], self._spoken.ends[last]
        turns_end = self._turns[last] + 1
        lowest, found = math.inf, last
        for start in range(earliest, last + 1):
            cost = best[start] + _CHUNK
            if cost >= lowest:
                continue
            size = characters_end - characters[start]
            # Squares of sizes that add up to the same are least when they are even.
            cost += (size / self._size) ** 2
            if size > self._size:
                cost += _OVERSIZE
            if spoken_end - spoken[start] < TINY:
                cost += _TINY_CHUNK
            if turns_end - self._turns[start] > _SOFT_TURNS:
                cost += _many_turns(turns_end - self._turns[start], spoken_end - spoken[start])
            if cost < lowest:
                lowest, found = cost, start
        return lowest + self._endings[last], found


def _many_turns(turns: int, spoken: int) -> float:
    """What a chunk of more than four turns costs beyond any other.

    It counts as the chunks of four turns that it could have been, so that those are as cheap, but
    not as chunks of less than 5 s.
    """
    cost = (turns - _SOFT_TURNS) * _EXTRA_TURN
    if spoken >= 2 * _SOFT_SPOKEN:
        cost += (min(-(-turns // _SOFT_TURNS), spoken // _SOFT_SPOKEN) - 1) * _CHUNK
    return cost

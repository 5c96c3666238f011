"""From a job's text to the generations that speak it: who speaks in which, and with which prompt.

Pure: texts, counts of frames, and indices. A voice prompt fixes the speakers that it introduces.
A speaker without one keeps the voice that the model gave it: the first chunk in which it was
heard, its *anchor*, becomes part of the prompt of every later chunk in which it speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.dia.tokenizer import encode_text
from worker.errors import InvalidInput
from worker.text import (
    Chunk,
    Speaker,
    TextChunker,
    Turn,
    begins_with_s1,
    estimate_frames,
    model_text,
    parse_turns,
    rename_speakers,
    render,
)

SLACK = 1.25  # by which speech may be slower than estimated when frames are set aside for it
GENEROUS = 2.0, 258  # factor and frames (3 s) of the limit where a job sets none


@dataclass(frozen=True)
class Budget:
    """What one generation of the model has room for."""

    max_bytes: int  # of text, the prompt's transcript included
    max_frames: int  # prompt and new frames, the delay not included


@dataclass(frozen=True)
class PlannedChunk:
    """One generation: what it says, and the chunks whose voices it continues."""

    chunk: Chunk
    anchors: tuple[int, ...]  # indices of earlier chunks, in order


@dataclass(frozen=True)
class Script:
    """All generations of a job, in the order of the text."""

    chunks: tuple[PlannedChunk, ...]
    renamed: bool  # S1 and S2 stand for each other, in the whole text

    def as_written(self, chunk: Chunk) -> tuple[Turn, ...]:
        """A chunk's turns under the names that the user gave the speakers."""
        return tuple(rename_speakers(chunk.turns)) if self.renamed else chunk.turns


def write_script(
    text: str,
    *,
    budget: Budget,
    voice_turns: Sequence[Turn] = (),
    voice_frames: int = 0,
    enable_chunking: bool = True,
    chunk_size: int = 120,
    allow_multiple_speakers: bool = True,
) -> Script:
    """Cuts a job's text and decides which chunk needs which.

    Args:
        text: as the user wrote it.
        budget: of one generation.
        voice_turns: transcript of the voice prompt; begins with S1 where there is one.
        voice_frames: length of the voice prompt.
        enable_chunking: whether the text may be cut; if not it must fit one generation.
        chunk_size: characters.
        allow_multiple_speakers: whether turns share chunks.

    Raises:
        InvalidInput: if the text is not valid, or must not be cut and does not fit.
    """
    turns = parse_turns(text)
    introduced = {turn.speaker for turn in voice_turns}
    renamed = _must_rename(turns, introduced)
    if renamed:
        turns = rename_speakers(turns)
    room = Budget(
        budget.max_bytes - len(render(voice_turns).encode()), budget.max_frames - voice_frames
    )
    if enable_chunking:
        unvoiced = {turn.speaker for turn in turns} - introduced
        chunks = _cut(turns, room, len(unvoiced), chunk_size, allow_multiple_speakers)
    else:
        chunks = [_whole(turns, voice_turns, budget, room)]
    return Script(_with_anchors(chunks, introduced), renamed)


def frame_limit(chunk: Chunk, max_tokens: int | None, room: int) -> int:
    """New frames after which a chunk is stopped.

    Args:
        chunk: what is spoken.
        max_tokens: the job's own limit.
        room: frames that the prompt leaves.
    """
    factor, extra = GENEROUS
    return min(max_tokens or round(chunk.frames * factor) + extra, room)


def text_to_read(prompt: Sequence[Turn], turns: Sequence[Turn]) -> str:
    """What the model reads for one generation.

    It must begin with S1. Where the anchor that saw to that had to go, the speakers change names
    in the prompt's transcript and the chunk alike: the prompt's audio still says who is who.
    """
    if not begins_with_s1([*prompt, *turns]):
        prompt, turns = rename_speakers(prompt), rename_speakers(turns)
    return model_text(prompt, turns)


def choose_anchors(
    chunk: Chunk,
    heard: Mapping[int, tuple[Chunk, int]],
    budget: Budget,
    voice_turns: Sequence[Turn] = (),
    voice_frames: int = 0,
) -> list[int]:
    """The anchors that fit beside what is to be said, in order.

    Where not all do, those go first whose speakers the chunk can do without, then the longest.

    Args:
        chunk: what is to be said.
        heard: each anchor that it would like, and the frames that it came to.
        budget: of one generation.
        voice_turns: transcript of the voice prompt.
        voice_frames: its length.
    """
    kept = [index for index, (_, frames) in sorted(heard.items()) if frames > 0]
    least = voice_frames + round(chunk.frames * SLACK)
    while kept:
        prompt = [*voice_turns, *(turn for index in kept for turn in heard[index][0].turns)]
        size = least + sum(heard[index][1] for index in kept)
        text = text_to_read(prompt, chunk.turns)
        if size <= budget.max_frames and _bytes(text) <= budget.max_bytes:
            break
        kept.remove(max(kept, key=lambda i: (_strangers(chunk, heard[i][0]), heard[i][1])))
    return kept


def _strangers(chunk: Chunk, anchor: Chunk) -> bool:
    """Whether no speaker of the one speaks in the other."""
    return set(chunk.speakers).isdisjoint(anchor.speakers)


def _must_rename(turns: Sequence[Turn], introduced: set[Speaker]) -> bool:
    """Without a voice the text must begin with S1; with the voice of one, a text in which only
    the other one speaks is meant for that voice."""
    if not introduced:
        return not begins_with_s1(turns)
    return introduced == {"S1"} and {turn.speaker for turn in turns} == {"S2"}


def _cut(
    turns: Sequence[Turn],
    room: Budget,
    unvoiced: int,
    chunk_size: int,
    allow_multiple_speakers: bool,
) -> list[Chunk]:
    """Chunks that leave room for the anchors that they will need."""
    text = render(turns)

    def cut(shares: int) -> list[Chunk]:
        chunker = TextChunker(
            max_bytes=room.max_bytes // shares, max_frames=int(room.max_frames / SLACK) // shares
        )
        return chunker.chunk_text_by_sentences(text, chunk_size, allow_multiple_speakers)

    chunks = cut(1)
    return cut(1 + unvoiced) if unvoiced and len(chunks) > 1 else chunks


def _whole(
    turns: Sequence[Turn], voice_turns: Sequence[Turn], budget: Budget, room: Budget
) -> Chunk:
    chunk = Chunk(0, tuple(turns))
    needed = round(estimate_frames(chunk.text))
    if needed > room.max_frames:
        raise InvalidInput(
            f"text takes about {needed} frames and enable_chunking is false; "
            f"one generation has room for {room.max_frames}"
        )
    encode_text(model_text(voice_turns, turns), budget.max_bytes)
    return chunk


def _with_anchors(chunks: Sequence[Chunk], introduced: set[Speaker]) -> tuple[PlannedChunk, ...]:
    heard: dict[Speaker, int] = {}
    planned = []
    for chunk in chunks:
        needed = {heard[who] for who in chunk.speakers if who in heard}
        first = min((*needed, chunk.index))
        # What the model reads must begin with S1, who speaks first in the text.
        if not introduced and chunks[first].first_speaker == "S2":
            needed.add(heard["S1"])
        planned.append(PlannedChunk(chunk, tuple(sorted(needed))))
        for who in chunk.speakers:
            if who not in introduced:
                heard.setdefault(who, chunk.index)
    return tuple(planned)


def _bytes(text: str) -> int:
    # The longest text that the tokenizer would take, so that it counts and does not refuse.
    return len(encode_text(text, max_bytes=1 << 30))

"""From what a user wrote to what the model reads: speaker turns, chunks, and the model's text.

Knows the alphabet, the speaker tags and the budgets of one generation. Does not know voices, audio
or tensors; everything here is pure and deterministic.

    turns      normalisation, speaker turns, and the text of one generation
    duration   how long a text is when spoken, non-verbals included
    split      where one turn may be broken, from sentences down to characters
    chunker    which of those breaks to take
"""

from worker.text.chunker import (
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    RESERVED_BYTES,
    TINY,
    TINY_ALLOWANCE,
    Chunk,
    TextChunker,
)
from worker.text.duration import NON_VERBALS, estimate_frames
from worker.text.turns import (
    Speaker,
    Turn,
    begins_with_s1,
    model_text,
    normalise,
    parse_turns,
    rename_speakers,
    render,
)

__all__ = [
    "MAX_CHUNK_SIZE",
    "MIN_CHUNK_SIZE",
    "NON_VERBALS",
    "RESERVED_BYTES",
    "TINY",
    "TINY_ALLOWANCE",
    "Chunk",
    "Speaker",
    "TextChunker",
    "Turn",
    "begins_with_s1",
    "estimate_frames",
    "model_text",
    "normalise",
    "parse_turns",
    "rename_speakers",
    "render",
]

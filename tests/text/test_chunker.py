"""What users get when a text is too long for one generation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.dia.tokenizer import encode_text
from worker.errors import InvalidInput
from worker.text import (
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    NON_VERBALS,
    RESERVED_BYTES,
    TINY,
    TINY_ALLOWANCE,
    Chunk,
    TextChunker,
    Turn,
    estimate_frames,
    model_text,
    parse_turns,
    rename_speakers,
    render,
)
from worker.text.duration import spoken_characters

# Without a deadline: how long it takes is no test.
properties = settings(deadline=None, max_examples=60)

words = st.one_of(
    st.sampled_from(
        ["Hello", "Dr. Smith", "$3.50", "7 p.m.", "well,", "Stop!", "really?", "a", "I", "It's",
         '"Go.', 'Now."', "‘Yes’", "word—word", "- so", "e.g.", "...", "…", "你好，世界。",
         "日本語", "👍🏽", "e\u0323\u0331", "e" + "\u0323" * 60, "x" * 50, "y" * 300, "漢" * 90,
         ";", "(", ")"]
    ),
    st.sampled_from(sorted(NON_VERBALS)).map(lambda name: f"({name})"),
    st.text(max_size=12),
)  # fmt: skip
spoken = st.lists(
    st.tuples(words, st.sampled_from([" ", " ", " ", "", "\n"])).map("".join),
    min_size=1,
    max_size=40,
).map("".join)
tagged = st.lists(
    st.tuples(st.sampled_from(["[S1] ", "[S2] ", "[s2]", ""]), spoken).map("".join),
    min_size=1,
    max_size=8,
).map(" ".join)


def valid(text: str) -> bool:
    try:
        parse_turns(text)
    except InvalidInput:
        return False
    return True


texts = tagged.filter(valid)
sizes = st.integers(MIN_CHUNK_SIZE, MAX_CHUNK_SIZE)
chunkers = st.builds(
    TextChunker, max_bytes=st.integers(43, 1024), max_frames=st.integers(230, 3057)
)


def chunk(
    text: str, size: int = 120, many: bool = True, chunker: TextChunker | None = None
) -> list[Chunk]:
    return (chunker or TextChunker()).chunk_text_by_sentences(text, size, many)


def said(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """Who says which character, whitespace left out."""
    return [
        (turn.speaker, character)
        for turn in turns
        for character in turn.text
        if not character.isspace()
    ]


def spoken_length(chunk: Chunk) -> int:
    return sum(spoken_characters(turn.text) for turn in chunk.turns)


def model_bytes(prompt: Sequence[Turn], turns: Sequence[Turn]) -> int:
    if (prompt or turns)[0].speaker == "S2":
        prompt, turns = rename_speakers(prompt), rename_speakers(turns)
    return len(encode_text(model_text(prompt, turns), 10_000))


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_nothing_is_lost_or_moved_and_everyone_says_their_own(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    chunks = chunk(text, size, many, chunker)
    assert said([turn for part in chunks for turn in part.turns]) == said(parse_turns(text))
    assert [part.index for part in chunks] == list(range(len(chunks)))


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_words_within_a_chunk_stay_as_they_were(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    whole = [turn.text for turn in parse_turns(text)]
    for part in chunk(text, size, many, chunker):
        for turn in part.turns:
            assert any(turn.text in original for original in whole)


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_every_chunk_fits_its_budgets(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    for part in chunk(text, size, many, chunker):
        assert len(part.text) <= size + TINY_ALLOWANCE
        assert part.frames <= chunker.max_frames
        assert model_bytes([], part.turns) <= chunker.max_bytes


@properties
@given(texts, sizes, st.sampled_from(["[S1] Hello.", "[S1] a. [S2] b.", "[S1] é. [S2] b. [S1] c."]))
def test_prompt_chunk_and_closing_tag_fit_the_model(text: str, size: int, prompt: str) -> None:
    turns = parse_turns(prompt)
    limit = 120
    chunker = TextChunker(max_bytes=limit - len(encode_text(prompt)))
    for part in chunk(text, size, True, chunker):
        assert model_bytes(turns, part.turns) <= limit


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_no_chunk_is_oversized_where_none_would_be_tiny(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.text.chunker.TINY_ALLOWANCE", 0)
        strict = chunk(text, size, many, chunker)
    assert all(len(part.text) <= size for part in strict)
    if all(spoken_length(part) >= TINY for part in strict):
        assert all(len(part.text) <= size for part in chunk(text, size, many, chunker))


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_a_tiny_chunk_is_left_only_where_no_neighbour_can_take_it(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    for left, right in pairwise(chunk(text, size, many, chunker)):
        if min(spoken_length(left), spoken_length(right)) >= TINY:
            continue
        joined = render([*left.turns, *right.turns])
        assert (
            (not many and left.speakers != right.speakers)
            or len(joined) > size + TINY_ALLOWANCE
            or estimate_frames(joined) > chunker.max_frames
            or len(encode_text(joined)) + RESERVED_BYTES > chunker.max_bytes
        )


@properties
@given(texts, sizes, st.booleans())
def test_the_same_text_gives_the_same_chunks(text: str, size: int, many: bool) -> None:
    assert chunk(text, size, many) == chunk(text, size, many)


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_non_verbals_are_never_split(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    sounds = re.compile("|".join(re.escape(f"({name})") for name in sorted(NON_VERBALS)))
    before = sounds.findall(render(parse_turns(text)))
    after = [
        sound for part in chunk(text, size, many, chunker) for sound in sounds.findall(part.text)
    ]
    assert after == before


@properties
@given(texts, sizes, chunkers)
def test_one_speaker_a_chunk_where_that_was_asked_for(
    text: str, size: int, chunker: TextChunker
) -> None:
    assert all(len(part.turns) == 1 for part in chunk(text, size, False, chunker))


@properties
@given(texts, sizes, st.booleans(), chunkers)
def test_speakers_alternate_within_a_chunk(
    text: str, size: int, many: bool, chunker: TextChunker
) -> None:
    for part in chunk(text, size, many, chunker):
        assert all(a.speaker != b.speaker for a, b in pairwise(part.turns))
        assert all(turn.text == turn.text.strip() != "" for turn in part.turns)


@properties
@given(st.lists(st.integers(21, 110), min_size=1, max_size=12), st.booleans())
def test_there_are_as_few_chunks_as_whole_sentences_allow(lengths: list[int], many: bool) -> None:
    sentences = ["A" + "b" * (length - 2) + "." for length in lengths]
    filled, greedy = 0, 0
    for sentence in sentences:
        if greedy == 0 or filled + 1 + len(sentence) > 115:
            filled, greedy = len(sentence), greedy + 1
        else:
            filled += 1 + len(sentence)
    chunks = chunk(" ".join(sentences), 120, many)
    assert len(chunks) == greedy
    assert all(part.text.endswith(".") for part in chunks)


def test_abbreviations_prices_and_times_do_not_end_sentences() -> None:
    text = "Dr. Smith paid $3.50 at 7 p.m. and left for good. " * 3
    chunks = chunk(text.strip(), 60)
    assert [part.text for part in chunks] == [
        "[S1] Dr. Smith paid $3.50 at 7 p.m. and left for good."
    ] * 3


def test_a_short_text_is_one_chunk() -> None:
    (only,) = chunk("Hello there. [S2] Hi!")
    assert only == Chunk(0, (Turn("S1", "Hello there."), Turn("S2", "Hi!")))
    assert only.text == "[S1] Hello there. [S2] Hi!"
    assert only.speakers == ("S1", "S2")
    assert (only.first_speaker, only.last_speaker) == ("S1", "S2")


def test_a_text_that_begins_with_the_second_speaker_keeps_that_name() -> None:
    assert chunk("[S2] Hi there, my friend. [S1] Hello.")[0].text.startswith("[S2] Hi")


def test_a_dialogue_is_broken_between_turns() -> None:
    text = "[S1] Did you see that? [S2] (laughs) I did, and I still don't believe it. " * 4
    for part in chunk(text.strip(), 120):
        assert part.text.endswith(("that?", "believe it."))


def test_chunks_of_a_long_dialogue_have_at_most_four_turns() -> None:
    text = "[S1] Did you see what they did to it? [S2] I did, and I still don't believe it. " * 6
    chunks = chunk(text.strip(), MAX_CHUNK_SIZE)
    assert [len(part.turns) for part in chunks] == [4, 4, 4]


def test_a_quick_exchange_is_not_torn_into_seconds() -> None:
    assert len(chunk("[S1] Yes. [S2] No. " * 4, 120)) == 1


def test_chunks_are_even() -> None:
    lengths = [len(part.text) for part in chunk("and then we went on through it " * 8, 120)]
    assert len(lengths) == 3
    assert max(lengths) - min(lengths) < 15


def test_a_long_sentence_is_broken_at_clauses() -> None:
    text = (
        "When the long night was over at last and the sun came up, we went down to the river; "
        "nobody had slept, nobody spoke, and the boats were gone."
    )
    for part in chunk(text, 80):
        assert part.text[-1] in ",;."


def test_a_long_quote_is_broken_between_its_sentences() -> None:
    text = (
        "“I went home early that day. She stayed behind, of course. Mr. Jones did not say one "
        "word. He only looked at us.” That is all."
    )
    chunks = chunk(text, 80)
    assert len(chunks) > 1
    assert all(re.search(r'[.]"?$', part.text) for part in chunks)
    assert not any(part.text.endswith("Mr.") for part in chunks)


def test_a_word_without_end_is_broken_between_letters_and_their_marks() -> None:
    chunks = chunk("g\u0303" * 400, 100)
    assert all(part.turns[0].text[0] == "g" for part in chunks)
    assert all(part.turns[0].text[-1] == "\u0303" for part in chunks)


def test_a_tiny_last_sentence_joins_its_neighbour_beyond_the_chunk_size() -> None:
    first = "A" + "b" * 112 + "."
    (only,) = chunk(f"{first} Yes, indeed.", 120)
    assert 120 < len(only.text) <= 120 + TINY_ALLOWANCE


def test_a_tiny_turn_stays_alone_when_speakers_may_not_share() -> None:
    chunks = chunk("[S1] Did you see what they did? [S2] Yes. [S1] I did not like it.", 120, False)
    assert [part.first_speaker for part in chunks] == ["S1", "S2", "S1"]


def test_sounds_take_time() -> None:
    chunks = chunk("(sings) " * 60, MAX_CHUNK_SIZE, True, TextChunker(max_frames=900))
    assert len(chunks) > 5
    assert all(part.frames <= 900 for part in chunks)


@pytest.mark.parametrize("size", [-1, 0, MIN_CHUNK_SIZE - 1, MAX_CHUNK_SIZE + 1])
def test_a_chunk_size_out_of_range_is_refused_with_what_is_valid(size: int) -> None:
    with pytest.raises(InvalidInput, match=f"chunk_size is {size}; valid are 40 to 500"):
        chunk("Hello.", size)


@pytest.mark.parametrize("limits", [{"max_bytes": 42}, {"max_frames": 229}, {"max_bytes": -5}])
def test_a_prompt_that_leaves_no_room_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="leaves no room"):
        TextChunker(**limits)


def test_a_non_verbal_of_two_words_is_never_split() -> None:
    for part in chunk("(clears throat) " * 20, 50):
        assert part.text.startswith("[S1] (clears")
        assert part.text.endswith("throat)")


def test_the_last_byte_of_the_model_is_used() -> None:
    prompt, text = "[S1] p.", "[S2] Hello there, my friend. [S1] I did not see you come in."
    needed = len(encode_text(model_text(parse_turns(prompt), parse_turns(text))))
    left = needed - len(encode_text(prompt))
    assert len(chunk(text, 120, True, TextChunker(max_bytes=left))) == 1
    assert len(chunk(text, 120, True, TextChunker(max_bytes=left - 1))) == 2


def test_the_smaller_of_chunk_size_and_budget_holds() -> None:
    chunks = chunk("It was late and we went on. " * 10, 500, True, TextChunker(max_bytes=70))
    assert all(len(encode_text(part.text)) <= 67 for part in chunks)


@pytest.mark.parametrize("text", ["", "[S1] [S2]", "[S3] Hello."])
def test_text_that_is_not_valid_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="text"):
        chunk(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("a" * 15, 1), ("[S1] " + "a" * 15, 1), ("(laughs)", 1), ("[S1] (coughs) [S2] (Sighs)", 2)],
)
def test_frames_are_estimated_from_what_is_spoken(text: str, seconds: int) -> None:
    assert estimate_frames(text) == math.ceil(seconds * 44_100 / 512)

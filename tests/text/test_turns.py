"""What users may write, and how the model gets to read it."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.dia.tokenizer import encode_text
from worker.errors import InvalidInput
from worker.text import (
    Turn,
    begins_with_s1,
    model_text,
    normalise,
    parse_turns,
    rename_speakers,
    render,
)

# Without a deadline: how long it takes is no test.
properties = settings(deadline=None, max_examples=60)

SNIPPETS = [
    "[S1]", "[S2]", "[s1]", "[ S2 ]", "[", "]", "S1", "S2", "1", "Hello.", "(laughs)", "…", "“",
    "’", "\u00a0", "\u200b", "\u200d", "\n", "\t", "\x00", "\x01", "\x02", "\ud800", "e\u0301",
    "\u0301", "你好。", "👍🏽", "  ", "\u3000", "\u2028", "—", "$3.50", "\u037e", "\u212a",
]  # fmt: skip
written = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=4)), max_size=25).map(
    "".join
)
turns_strategy = st.lists(
    st.builds(
        Turn,
        st.sampled_from(["S1", "S2"]),
        st.text(alphabet="abc é。,!", min_size=1).map(lambda text: f"a{text}z"),
    ),
    min_size=1,
    max_size=8,
)


def valid(text: str) -> bool:
    try:
        parse_turns(text)
    except InvalidInput:
        return False
    return True


valid_text = written.filter(valid)


@properties
@given(valid_text)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@properties
@given(valid_text)
def test_normal_text_is_nfc_and_has_single_spaces_only(text: str) -> None:
    text = normalise(text)
    assert unicodedata.is_normalized("NFC", text)
    assert text == " ".join(text.split())
    assert all(character == " " or not character.isspace() for character in text)


@properties
@given(valid_text)
def test_any_valid_text_can_be_read_by_the_tokenizer(text: str) -> None:
    encode_text(render(parse_turns(text)), max_bytes=10_000)


@properties
@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])).filter(valid))
def test_letters_digits_and_signs_all_stay(text: str) -> None:
    plain = str.maketrans(dict.fromkeys("“”„‟«»〝〞〟＂‘’‚‛‹›ʼ＇\"'….", ""))
    expected = unicodedata.normalize("NFC", text).translate(plain)
    assert normalise(text).translate(plain) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Don’t,” she said…", '"Don\'t," she said...'),
        ("a\u00a0b\u2003c\r\nd\te", "a b c d e"),
        ("zero\u200bwidth \ufeffmark", "zerowidth mark"),
        ("bell\x07bell", "bell bell"),
        ("cafe\u0301", "café"),
        ("cafe\u200b\u0301", "café"),
        ("[s1] a [ S2 ] b [\u00a0s2\u00a0] c", "[S1] a [S2] b [S2] c"),
        ("  (laughs)  ", "(laughs)"),
    ],
)
def test_typography_becomes_plain(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize("tag", ["[S3]", "[S0]", "[S12]", "[ s3 ]", "[S01]", "[S١]"])
def test_a_third_speaker_is_refused_with_the_valid_tags(tag: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        normalise(f"[S1] Hello. {tag} Hi.")
    assert "text" in refusal.value.message
    assert tag in refusal.value.message
    assert "[S1] and [S2]" in refusal.value.message


@pytest.mark.parametrize("text", ["", "  \n", "[S1]", "[S1] [s2] \u200b", "\x00\x01"])
def test_text_with_nothing_to_say_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="text is empty"):
        normalise(text)


def test_a_non_verbal_alone_is_something_to_say() -> None:
    assert parse_turns("(laughs)") == [Turn("S1", "(laughs)")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.", [Turn("S1", "Hello.")]),
        ("Hello. [S2] Hi.", [Turn("S1", "Hello."), Turn("S2", "Hi.")]),
        ("[S2] Hi. [S1] Hello.", [Turn("S2", "Hi."), Turn("S1", "Hello.")]),
        ("[S1] a. [S1] b. [S2] c.", [Turn("S1", "a. b."), Turn("S2", "c.")]),
        ("[S1] a. [S2] [S1] b.", [Turn("S1", "a. b.")]),
        ("a[S2]b[s1]c", [Turn("S1", "a"), Turn("S2", "b"), Turn("S1", "c")]),
        ("[S2][S1] a.", [Turn("S1", "a.")]),
        ("[ [S1] S2] a.", [Turn("S2", "a.")]),
    ],
)
def test_turns_are_read_from_the_tags(text: str, expected: list[Turn]) -> None:
    assert parse_turns(text) == expected


@properties
@given(valid_text)
def test_turns_survive_being_written_and_read_again(text: str) -> None:
    turns = parse_turns(text)
    assert parse_turns(render(turns)) == turns


@properties
@given(valid_text)
def test_turns_alternate_and_none_is_empty(text: str) -> None:
    turns = parse_turns(text)
    assert all(turn.text == turn.text.strip() != "" for turn in turns)
    assert all(a.speaker != b.speaker for a, b in pairwise(turns))


def test_a_tag_is_written_only_where_the_speaker_changes() -> None:
    turns = [Turn("S1", "a."), Turn("S1", "b."), Turn("S2", "c.")]
    assert render(turns) == "[S1] a. b. [S2] c."


def test_a_text_of_the_second_speaker_can_become_one_of_the_first() -> None:
    turns = parse_turns("[S2] Hi. [S1] Hello.")
    assert not begins_with_s1(turns)
    renamed = rename_speakers(turns)
    assert begins_with_s1(renamed)
    assert render(renamed) == "[S1] Hi. [S2] Hello."
    assert rename_speakers(renamed) == turns
    assert not begins_with_s1([])


@pytest.mark.parametrize(
    ("prompt", "chunk", "expected"),
    [
        ("", "[S1] a.", "[S1] a."),
        ("", "[S1] a. [S2] b.", "[S1] a. [S2] b. [S1]"),
        ("", "[S1] a. [S2] b. [S1] c.", "[S1] a. [S2] b. [S1] c. [S2]"),
        ("[S1] p.", "[S1] a.", "[S1] p. a."),
        ("[S1] p.", "[S2] a.", "[S1] p. [S2] a. [S1]"),
        ("[S1] p. [S2] q.", "[S2] a. [S1] b.", "[S1] p. [S2] q. a. [S1] b. [S2]"),
    ],
)
def test_the_model_reads_prompt_chunk_and_closing_tag(
    prompt: str, chunk: str, expected: str
) -> None:
    assert model_text(parse_turns(prompt) if prompt else [], parse_turns(chunk)) == expected


@properties
@given(st.one_of(st.just([]), turns_strategy), turns_strategy)
def test_tags_alternate_in_all_that_the_model_reads(prompt: list[Turn], chunk: list[Turn]) -> None:
    if (prompt + chunk)[0].speaker == "S2":
        prompt, chunk = rename_speakers(prompt), rename_speakers(chunk)
    tags = [byte for byte in encode_text(model_text(prompt, chunk), 10_000) if byte in (1, 2)]
    assert tags == [1 + number % 2 for number in range(len(tags))]
    assert len(tags) != 2  # one speaker has no closing tag, two have


@pytest.mark.parametrize("turns", [[], [Turn("S2", "Hi.")]])
def test_a_model_text_that_does_not_begin_with_s1_is_our_own_mistake(turns: list[Turn]) -> None:
    with pytest.raises(ValueError, match=r"begin with \[S1\]"):
        model_text([], turns)

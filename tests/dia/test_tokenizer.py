from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.dia.tokenizer import encode_text
from worker.errors import InvalidInput

words = st.text(st.characters(exclude_characters="[\x00\x01\x02", codec="utf-8"), min_size=1)


def test_a_speaker_tag_is_one_byte() -> None:
    assert encode_text("[S1] Hi [S2]") == [1, *b" Hi ", 2]


def test_other_characters_are_their_utf8_bytes() -> None:
    assert encode_text("né [S3] [s1] 😀") == list("né [S3] [s1] 😀".encode())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(words, st.sampled_from(["[S1]", "[S2]"])), min_size=1))
def test_any_text_can_be_read_back_from_its_ids(parts: list[str]) -> None:
    text = "".join(parts)
    ids = bytes(encode_text(text, max_bytes=100_000))
    assert ids.replace(b"\x01", b"[S1]").replace(b"\x02", b"[S2]").decode() == text
    assert ids.count(1) == text.count("[S1]")
    assert ids.count(2) == text.count("[S2]")


@pytest.mark.parametrize("text", ["[S1]" + "a" * 1023, "é" * 512, "[S1][S2]" * 512])
def test_a_text_of_exactly_the_limit_is_taken(text: str) -> None:
    assert len(encode_text(text)) == 1024


def test_a_text_over_the_limit_is_refused_and_never_cut() -> None:
    with pytest.raises(InvalidInput, match=r"1026 bytes, at most 1024"):
        encode_text("é" * 513)


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        encode_text("")


@pytest.mark.parametrize("character", ["\x00", "\x01", "\x02"])
def test_a_control_character_that_would_pass_for_a_tag_is_refused(character: str) -> None:
    with pytest.raises(InvalidInput, match="control characters"):
        encode_text(f"[S1] a{character}b")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidInput, match="surrogate"):
        encode_text("[S1] \ud800")

"""Which generations a text becomes, and whose voices each one continues."""

from __future__ import annotations

import re
from itertools import groupby

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from worker.dia.tokenizer import encode_text
from worker.errors import InvalidInput
from worker.script import (
    SLACK,
    Budget,
    PlannedChunk,
    Script,
    choose_anchors,
    frame_limit,
    text_to_read,
    write_script,
)
from worker.text import Chunk, Turn, parse_turns, rename_speakers, render

BUDGET = Budget(max_bytes=1024, max_frames=3072 - 15)
ONE = parse_turns("[S1] The harbor is quiet, and the boats wait for the wind.")
BOTH = parse_turns("[S1] The harbor is quiet. [S2] And the boats wait for the wind.")
LONG = "This sentence has about fifty characters, as you see."

properties = settings(deadline=None, max_examples=80)


def script(
    text: str, voice: list[Turn] | None = None, chunk_size: int = 60, dialogue: bool = False
) -> Script:
    return write_script(
        text,
        budget=BUDGET,
        voice_turns=voice or [],
        voice_frames=600 if voice else 0,
        chunk_size=chunk_size,
        allow_multiple_speakers=dialogue,
    )


def lines(*speakers: str) -> str:
    """A turn of fifty characters each, so that every one is a chunk."""
    return " ".join(f"[{who}] {LONG[:-1]} {number}." for number, who in enumerate(speakers))


def anchors(planned: Script) -> list[tuple[int, ...]]:
    return [chunk.anchors for chunk in planned.chunks]


def speakers(planned: Script) -> list[str]:
    return ["+".join(part.chunk.speakers) for part in planned.chunks]


def chunk_of(text: str, index: int = 0) -> Chunk:
    return Chunk(index, tuple(parse_turns(text)))


def prompt_of(planned: Script, part: PlannedChunk, voice: list[Turn]) -> list[Turn]:
    return [*voice, *(turn for at in part.anchors for turn in planned.chunks[at].chunk.turns)]


def said(turns: list[Turn] | tuple[Turn, ...]) -> list[tuple[str, str]]:
    """Who says which characters, however they were cut: without spaces, turns joined."""
    return [
        (who, "".join("".join(turn.text.split()) for turn in same))
        for who, same in groupby(turns, key=lambda turn: turn.speaker)
    ]


# Who continues whom


def test_one_speaker_keeps_the_voice_of_the_first_chunk() -> None:
    assert anchors(script(lines("S1") + f" {LONG} {LONG} {LONG}")) == [(), (0,), (0,), (0,)]


def test_speakers_who_take_turns_each_keep_the_voice_they_were_first_heard_with() -> None:
    planned = script(lines("S1", "S2", "S1", "S2", "S1"))
    assert speakers(planned) == ["S1", "S2", "S1", "S2", "S1"]
    # What S2 says needs S1 before it: the model's text has to begin with [S1].
    assert anchors(planned) == [(), (0,), (0,), (0, 1), (0,)]


def test_a_dialogue_in_which_both_are_heard_at_once_needs_that_chunk_only() -> None:
    planned = script(lines("S1", "S2", "S1", "S2", "S1", "S2"), chunk_size=130, dialogue=True)
    assert speakers(planned) == ["S1+S2"] * 3
    assert anchors(planned) == [(), (0,), (0,)]


def test_a_dialogue_after_a_monologue_continues_both_speakers() -> None:
    text = f"[S1] {LONG} {LONG} [S2] {LONG} [S1] {LONG} [S2] {LONG}"
    planned = script(text, chunk_size=130, dialogue=True)
    heard = {"S1": 0, "S2": next(i for i, who in enumerate(speakers(planned)) if "S2" in who)}
    last = planned.chunks[-1]
    assert set(last.chunk.speakers) == {"S1", "S2"}
    assert last.chunk.index > heard["S2"]
    assert last.anchors == tuple(sorted(set(heard.values())))


def test_a_speaker_with_a_voice_needs_no_anchor() -> None:
    assert anchors(script(lines("S1") + f" {LONG} {LONG}", ONE)) == [(), (), ()]


def test_with_a_voice_for_one_only_the_other_is_anchored() -> None:
    planned = script(lines("S1", "S2", "S1", "S2", "S1", "S2"), ONE)
    assert anchors(planned) == [(), (), (), (1,), (), (1,)]


def test_with_a_voice_for_both_nothing_waits_for_anything() -> None:
    planned = script(lines("S2", "S1", "S2", "S1"), BOTH)
    assert anchors(planned) == [(), (), (), ()]
    assert not planned.renamed


# Tags


@pytest.mark.parametrize("text", [lines("S2"), lines("S2", "S1", "S2"), lines("S2", "S1")])
def test_a_text_that_begins_with_s2_is_renamed_as_a_whole(text: str) -> None:
    planned = script(text)
    assert planned.renamed
    assert said(parse_turns(text)) == said(
        [turn for part in planned.chunks for turn in rename_speakers(part.chunk.turns)]
    )
    assert planned.chunks[0].chunk.first_speaker == "S1"


def test_a_text_of_s2_alone_is_meant_for_the_one_voice_there_is() -> None:
    planned = script(lines("S2"), ONE)
    assert planned.renamed
    assert planned.chunks[0].chunk.speakers == ("S1",)


def test_s2_before_s1_stays_s2_beside_the_voice_of_s1() -> None:
    planned = script(lines("S2", "S1"), ONE)
    assert not planned.renamed
    assert speakers(planned) == ["S2", "S1"]


def test_s2_alone_stays_s2_beside_a_voice_that_has_both() -> None:
    planned = script(lines("S2"), BOTH)
    assert not planned.renamed
    assert speakers(planned) == ["S2"]


def test_a_chunk_that_begins_with_s2_keeps_its_tag_behind_a_prompt_of_both() -> None:
    assert text_to_read(BOTH, parse_turns("[S2] Go on.")) == (
        "[S1] The harbor is quiet. [S2] And the boats wait for the wind. Go on. [S1]"
    )


def test_prompt_and_chunk_are_renamed_together_where_the_anchor_of_s1_had_to_go() -> None:
    prompt = parse_turns("[S2] I was heard first.")
    assert text_to_read(prompt, parse_turns("[S2] And again. [S1] And I.")) == (
        "[S1] I was heard first. And again. [S2] And I. [S1]"
    )


# Every text


words = st.sampled_from(
    ["Hello", "well,", "Stop!", "really?", "It's", "(laughs)", "…", "你好，世界。", "👍🏽",
     "x" * 50, "y" * 300, "漢" * 90, "and so we went on, and on."]
)  # fmt: skip
sentences = st.lists(words, min_size=1, max_size=40).map(" ".join)
texts = st.lists(
    st.tuples(st.sampled_from(["[S1] ", "[S2] ", "[s2]", ""]), sentences).map("".join),
    min_size=1,
    max_size=10,
).map(" ".join)
voices = st.sampled_from([[], ONE, BOTH])
scripts = {
    "text": texts,
    "voice": voices,
    "chunk_size": st.sampled_from([40, 60, 120, 200, 500]),
    "dialogue": st.booleans(),
}


@properties
@given(**scripts)
def test_every_generation_fits_its_whole_prompt_where_speech_is_as_long_as_estimated(
    text: str, voice: list[Turn], chunk_size: int, dialogue: bool
) -> None:
    planned = script(text, voice, chunk_size, dialogue)
    voice_frames = 600 if voice else 0
    for part in planned.chunks:
        heard = {at: (planned.chunks[at].chunk, planned.chunks[at].chunk.frames)
                 for at in part.anchors}  # fmt: skip
        kept = choose_anchors(part.chunk, heard, BUDGET, voice, voice_frames)
        assert tuple(kept) == part.anchors
        prompt_frames = voice_frames + sum(frames for _, frames in heard.values())
        assert prompt_frames + part.chunk.frames * SLACK <= BUDGET.max_frames + 1
        text_read = text_to_read(prompt_of(planned, part, voice), part.chunk.turns)
        encode_text(text_read, BUDGET.max_bytes)  # refuses what is too long


@properties
@given(**scripts)
def test_every_generation_reads_a_text_that_begins_with_s1_and_alternates(
    text: str, voice: list[Turn], chunk_size: int, dialogue: bool
) -> None:
    planned = script(text, voice, chunk_size, dialogue)
    for part in planned.chunks:
        prompt = prompt_of(planned, part, voice)
        tags = re.findall(r"\[S[12]\]", text_to_read(prompt, part.chunk.turns))
        assert tags == ["[S1]" if at % 2 == 0 else "[S2]" for at in range(len(tags))]
        # With all of its anchors there, nobody is renamed.
        turns = [*prompt, *part.chunk.turns]
        assert text_to_read(prompt, part.chunk.turns).startswith(render(turns))


@properties
@given(**scripts)
def test_whoever_was_heard_before_without_a_voice_is_continued(
    text: str, voice: list[Turn], chunk_size: int, dialogue: bool
) -> None:
    introduced = {turn.speaker for turn in voice}
    heard: dict[str, int] = {}
    for part in script(text, voice, chunk_size, dialogue).chunks:
        assert all(at < part.chunk.index for at in part.anchors)
        wanted = {heard[who] for who in part.chunk.speakers if who in heard}
        assert wanted <= set(part.anchors)
        assert set(part.anchors) <= set(heard.values())
        for who in set(part.chunk.speakers) - introduced:
            heard.setdefault(who, part.chunk.index)


@properties
@given(**scripts)
def test_nothing_is_lost_and_everyone_keeps_the_tag_that_the_user_wrote(
    text: str, voice: list[Turn], chunk_size: int, dialogue: bool
) -> None:
    planned = script(text, voice, chunk_size, dialogue)
    written = [turn for part in planned.chunks for turn in planned.as_written(part.chunk)]
    assert said(written) == said(parse_turns(text))
    assert planned.renamed == any(
        planned.as_written(part.chunk) != part.chunk.turns for part in planned.chunks
    )


@properties
@given(**scripts)
def test_chunks_of_one_speaker_hold_one_speaker(
    text: str, voice: list[Turn], chunk_size: int, dialogue: bool
) -> None:
    assume(not dialogue)
    for part in script(text, voice, chunk_size, dialogue).chunks:
        assert len(part.chunk.speakers) == 1


# Anchors that do not fit


def heard_as(**frames: int) -> dict[int, tuple[Chunk, int]]:
    """Anchors 0 and 1, by who speaks in them."""
    return {
        index: (chunk_of(f"[{who}] I was heard.", index), count)
        for index, (who, count) in enumerate(frames.items())
    }


def test_anchors_that_fit_are_all_kept_in_order() -> None:
    heard = heard_as(S1=300, S2=300)
    assert choose_anchors(chunk_of("[S2] Hello.", 2), heard, BUDGET) == [0, 1]


def test_the_anchor_of_a_speaker_who_is_silent_here_goes_first_however_short() -> None:
    heard = heard_as(S1=100, S2=3000)
    assert choose_anchors(chunk_of("[S2] Hello.", 2), heard, BUDGET) == [1]


def test_of_anchors_that_are_all_needed_the_longest_goes_first() -> None:
    here = chunk_of("[S1] Hello. [S2] Hello.", 2)
    assert choose_anchors(here, heard_as(S1=2000, S2=1500), BUDGET) == [1]
    assert choose_anchors(here, heard_as(S1=1500, S2=2000), BUDGET) == [0]


def test_an_anchor_too_long_for_any_prompt_is_left_out() -> None:
    assert choose_anchors(chunk_of("[S1] Hello.", 2), heard_as(S1=3050), BUDGET) == []


def test_an_anchor_in_which_nothing_was_heard_is_left_out() -> None:
    assert choose_anchors(chunk_of("[S1] Hello.", 2), heard_as(S1=0), BUDGET) == []


def test_the_voice_of_the_job_takes_its_room_before_any_anchor() -> None:
    heard, here = heard_as(S2=2000), chunk_of("[S2] Hello.", 2)
    assert choose_anchors(here, heard, BUDGET, ONE, 600) == [0]
    assert choose_anchors(here, heard, BUDGET, ONE, 1100) == []


def test_an_anchor_whose_text_does_not_fit_is_left_out() -> None:
    heard = {0: (chunk_of(f"[S1] {'a' * 600}"), 10)}
    assert choose_anchors(chunk_of(f"[S1] {'b' * 400}", 1), heard, BUDGET) == [0]
    assert choose_anchors(chunk_of(f"[S1] {'b' * 430}", 1), heard, BUDGET) == []


# Without chunks, and limits


def whole(text: str, voice: list[Turn] | None = None, voice_frames: int = 0) -> Script:
    return write_script(
        text,
        budget=BUDGET,
        voice_turns=voice or [],
        voice_frames=voice_frames,
        enable_chunking=False,
        chunk_size=40,
    )


def test_without_chunking_a_text_that_fits_is_one_generation() -> None:
    planned = whole(lines("S2", "S1", "S2", "S1"))
    assert [part.anchors for part in planned.chunks] == [()]
    assert planned.as_written(planned.chunks[0].chunk) == tuple(
        parse_turns(lines("S2", "S1", "S2", "S1"))
    )


def test_without_chunking_a_text_that_takes_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        InvalidInput, match=r"text takes about \d{4} frames and enable_chunking is false.* 3057"
    ):
        whole(LONG * 20)


def test_without_chunking_a_text_of_too_many_bytes_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidInput, match=r"text takes 1202 bytes, at most 1024 fit"):
        whole("漢" * 400)


def test_without_chunking_the_voice_takes_its_share_of_the_room() -> None:
    text = "a" * 400
    whole(text)
    with pytest.raises(InvalidInput, match="room for 2057"):
        whole(text, ONE, voice_frames=1000)


def test_a_chunk_may_take_twice_its_estimate_and_three_seconds() -> None:
    chunk = chunk_of(f"[S1] {LONG}")
    assert frame_limit(chunk, None, 3000) == round(chunk.frames * 2.0) + 258


def test_a_chunk_stops_at_the_job_s_own_limit() -> None:
    assert frame_limit(chunk_of("[S1] Hello."), 25, 3000) == 25


@pytest.mark.parametrize("max_tokens", [None, 2000])
def test_a_chunk_stops_where_the_prompt_leaves_no_room(max_tokens: int | None) -> None:
    assert frame_limit(chunk_of("[S1] Hello."), max_tokens, 90) == 90

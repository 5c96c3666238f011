from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import NINE_CHANNELS, random_codes
from worker.dia.delay import UNKNOWN, delay_prompt, undelay

BOS = 1026

delay_patterns = st.lists(st.integers(0, 20), max_size=8).map(lambda later: (0, *later))
frame_counts = st.integers(0, 40)


@settings(deadline=None, max_examples=100)
@given(delay_patterns, frame_counts)
def test_a_prompt_is_laid_out_as_the_rule_says(delays: tuple[int, ...], frames: int) -> None:
    codes = random_codes(frames, len(delays))
    delayed = delay_prompt(codes, delays, BOS)
    assert delayed.shape == (frames + 1 + max(delays), len(delays))
    for t, row in enumerate(delayed.tolist()):
        for c, have in enumerate(row):
            element = t - delays[c]  # 0 is BOS, e is frame e − 1
            if element > frames:
                assert have == UNKNOWN
            elif element <= 0:
                assert have == BOS
            else:
                assert have == codes[element - 1, c]


@settings(deadline=None, max_examples=100)
@given(delay_patterns, frame_counts, st.data())
def test_taking_frames_back_out_gives_what_was_put_in(
    delays: tuple[int, ...], frames: int, data: st.DataObject
) -> None:
    codes = random_codes(frames, len(delays))
    start = data.draw(st.integers(0, frames))
    end = data.draw(st.integers(start, frames))
    delayed = delay_prompt(codes, delays, BOS)
    assert torch.equal(undelay(delayed, delays, start + 1, end + 1), codes[start:end])


def test_without_a_prompt_only_the_beginning_is_given() -> None:
    delayed = delay_prompt(random_codes(0, 3), (0, 1, 3), BOS)
    assert delayed.tolist() == [
        [BOS, BOS, BOS],
        [UNKNOWN, BOS, BOS],
        [UNKNOWN, UNKNOWN, BOS],
        [UNKNOWN, UNKNOWN, BOS],
    ]


def test_special_ids_among_the_frames_become_code_0() -> None:
    delayed = torch.tensor([[0, 5], [1023, 1026], [1024, 7], [1025, UNKNOWN], [9, 1024]])
    assert undelay(delayed, (0, 1), 0, 4).tolist() == [[0, 0], [1023, 7], [0, 0], [0, 0]]


def test_the_last_channel_s_last_frame_of_a_prompt_is_given_too() -> None:
    """The reference predicts this one: its table of given positions is one short."""
    delayed = delay_prompt(random_codes(37, 9), NINE_CHANNELS.delays, BOS)
    assert delayed[37 + 15, 8] != UNKNOWN
    assert (delayed[37 + 15, :8] == UNKNOWN).all()

from __future__ import annotations

import pytest
import torch

from worker.engine.sequence import Sequence
from worker.errors import InvalidInput


def sequence(prompt_frames: int = 0, new: int = 10, text: int = 5) -> Sequence:
    prompt = torch.zeros(prompt_frames, 9, dtype=torch.long)
    return Sequence([65] * text, prompt, max_new_frames=new)


@pytest.mark.parametrize(("prompt_frames", "new"), [(0, 3057), (57, 3000), (3056, 1)])
def test_a_sequence_that_fills_the_positions_exactly_is_taken(prompt_frames: int, new: int) -> None:
    sequence(prompt_frames, new).check_fits(3072, 15, 1024)


@pytest.mark.parametrize(
    ("prompt_frames", "new", "room"), [(0, 3058, 3057), (57, 3001, 3000), (100, 0, 2957)]
)
def test_a_sequence_that_cannot_fit_is_told_what_would(
    prompt_frames: int, new: int, room: int
) -> None:
    with pytest.raises(InvalidInput, match=rf"max_tokens is {new}; .* valid is 1 to {room}$"):
        sequence(prompt_frames, new).check_fits(3072, 15, 1024)


@pytest.mark.parametrize("text", [0, 1025])
def test_a_text_that_cannot_fit_is_refused(text: int) -> None:
    with pytest.raises(InvalidInput, match=rf"text takes {text} bytes; valid is 1 to 1024"):
        sequence(text=text).check_fits(3072, 15, 1024)


def test_whoever_watches_is_told_of_new_frames_only() -> None:
    told: list[int] = []
    watched = sequence()
    watched.on_frames = told.append
    for frames in (0, 0, 1, 1, 4, 4, 10):
        watched.advance(frames)
    assert told == [1, 3, 6]
    assert watched.frames == 10

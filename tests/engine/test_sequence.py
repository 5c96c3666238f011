"""A sequence: what it refuses to begin with, whom it tells of its frames, when it is unwanted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("frames", [0, 4])
@pytest.mark.parametrize("shape", [(8,), (10,), (9, 1), ()])
def test_a_prompt_of_other_channels_than_the_model_has_is_refused(
    frames: int, shape: tuple[int, ...]
) -> None:
    wrong = sequence()
    wrong.prompt = torch.zeros(frames, *shape, dtype=torch.long)
    with pytest.raises(InvalidInput, match=r"the prompt's shape is \[.*; valid is \[frames, 9\]"):
        wrong.check_fits(3072, 15, 1024, channels=9, codes=1024)
    wrong.check_fits(3072, 15, 1024)  # nobody asked


@pytest.mark.parametrize("code", [-1, 1024, 1026])
def test_a_prompt_with_codes_that_no_codebook_has_is_refused(code: int) -> None:
    wrong = sequence(prompt_frames=4)
    wrong.prompt[2, 7] = code
    with pytest.raises(InvalidInput, match=rf"the prompt holds code {code}; valid is 0 to 1023"):
        wrong.check_fits(3072, 15, 1024, channels=9, codes=1024)
    wrong.check_fits(3072, 15, 1024)  # nobody asked


@pytest.mark.parametrize("prompt_frames", [0, 1, 4])
def test_a_prompt_of_the_models_channels_and_codes_is_taken(prompt_frames: int) -> None:
    taken = sequence(prompt_frames)
    taken.prompt[1:] = 1023
    taken.check_fits(3072, 15, 1024, channels=9, codes=1024)


def test_whoever_watches_is_told_of_new_frames_only() -> None:
    told: list[int] = []
    watched = sequence()
    watched.on_frames = told.append
    for frames in (0, 0, 1, 1, 4, 4, 10):
        watched.advance(frames)
    assert told == [1, 3, 6]
    assert watched.frames == 10


def test_whoever_listens_gets_new_frames_in_order() -> None:
    got: list[Tensor] = []
    watched = sequence()
    watched.on_codes = got.append
    frames = torch.arange(6 * 9).reshape(6, 9)
    for part in frames.split([0, 2, 0, 1, 3]):
        watched.deliver(part)
    assert [len(part) for part in got] == [2, 1, 3]
    assert torch.equal(torch.cat(got), frames)


def test_a_sequence_that_nobody_watches_goes_on() -> None:
    alone = sequence()
    alone.advance(3)
    alone.deliver(torch.zeros(3, 9))
    assert alone.frames == 3
    assert not alone.cancelled.is_set()


def test_one_who_watches_and_fails_ends_the_sequence_and_hears_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure, calls = ValueError("the connection is gone"), []

    def fail(news: object) -> None:
        calls.append(news)
        raise failure

    watched = sequence()
    watched.on_frames = watched.on_codes = fail
    watched.advance(2)
    watched.deliver(torch.zeros(2, 9))
    watched.advance(5)
    assert calls == [2]
    assert watched.failure is failure
    assert watched.cancelled.is_set()
    assert watched.frames == 5
    assert "the connection is gone" in caplog.text


@pytest.mark.parametrize(("deadline", "unwanted"), [(None, False), (9.0, True), (10.0, False)])
def test_a_sequence_is_unwanted_once_its_deadline_has_passed(
    deadline: float | None, unwanted: bool
) -> None:
    waiting = sequence()
    waiting.deadline = deadline
    assert waiting.is_unwanted(now=10.0) == unwanted
    assert waiting.expired == unwanted


def test_a_cancelled_sequence_is_unwanted_and_not_late() -> None:
    waiting = sequence()
    waiting.deadline = 9.0
    waiting.cancelled.set()
    assert waiting.is_unwanted(now=10.0)
    assert not waiting.expired

"""Frames from delayed codes as they come in, and looks that are read late."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.test_engine import alone, assert_equal_codes, codes_of, request, several
from tests.models import NINE_CHANNELS, THREE_CHANNELS, random_codes, small_model
from worker.dia.config import DiaConfig, Generation
from worker.dia.delay import UNKNOWN, delay_prompt
from worker.engine.engine import Engine
from worker.engine.options import EngineOptions
from worker.engine.progress import Frames, SlotProgress
from worker.engine.state import NEVER

LATE = EngineOptions(steps_between_looks=4)


def grid_of(codes: Tensor, config: DiaConfig) -> Tensor:
    """[T, C] delayed codes by position, with anything where the model says what is not heard."""
    grid = delay_prompt(codes, config.delays, config.bos_id)
    return grid.masked_fill(grid == UNKNOWN, config.pad_id)


@given(data=st.data(), config=st.sampled_from([NINE_CHANNELS, THREE_CHANNELS]))
def test_frames_come_out_whole_whenever_and_however_often_one_looks(
    data: st.DataObject, config: DiaConfig
) -> None:
    start, new = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 40))
    codes = random_codes(start + new, config.decoder.channels, seed=new)
    grid, end = grid_of(codes, config), start + new + 1
    frames = Frames(config, start, longest=new + data.draw(st.integers(0, 9)))
    position, taken = start, []
    while not frames.finished:
        step = data.draw(st.integers(1, 4))
        position = min(position + step, end + config.max_delay - 1)
        recent = grid[max(0, position - 3) : position + 1]
        known_end = end if position >= end else NEVER
        frames.push(SlotProgress(position, known_end, False, recent))
        taken.append(frames.take())
        ready = position - start - config.max_delay
        assert sum(map(len, taken)) == max(0, min(ready, new))
    assert torch.equal(torch.cat(taken), codes[start:])
    assert torch.equal(frames.all(), codes[start:])


@pytest.mark.parametrize("generation", list(Generation))
def test_looking_late_changes_no_code(generation: Generation) -> None:
    model = small_model(generation)
    for slots in (1, 2, 6):
        have = codes_of(Engine(model, slots, LATE).generate(several()))
        assert_equal_codes(have, [alone(model, each) for each in several()])


def test_a_stream_gets_every_frame_once_and_in_order_also_when_one_looks_late() -> None:
    for options in (EngineOptions(), LATE):
        pieces: list[list[Tensor]] = [[] for _ in range(6)]
        sequences = several()
        for sequence, heard in zip(sequences, pieces, strict=True):
            sequence.on_codes = heard.append
        Engine(small_model(Generation.JUNE), 3, options).generate(sequences)
        assert_equal_codes([torch.cat(heard) for heard in pieces], codes_of(sequences))
        assert all(len(heard) > 1 for heard in pieces[2:])


def test_a_slot_given_to_the_next_sequence_tells_nothing_of_the_one_before() -> None:
    model, sequences = small_model(Generation.JUNE), several()
    engine = Engine(model, 2, LATE)
    for sequence in sequences:
        engine.add(sequence)
    for steps in range(300):
        if steps == 7:
            sequences[0].cancelled.set()
        if not engine.scheduler:
            break
        engine.step()
    assert sequences[0].codes is None
    wanted = [alone(model, each) for each in several()[1:]]
    assert_equal_codes(codes_of(sequences[1:]), wanted)


def test_the_first_frames_of_a_stream_come_as_soon_as_their_last_channel_is_drawn() -> None:
    told: list[int] = []
    sequence = request(new=60)
    engine = Engine(small_model(Generation.JUNE), 1)
    sequence.on_codes = lambda codes: told.append(engine._steps)
    engine.generate([sequence])
    assert told[0] == 1 + THREE_CHANNELS.max_delay
    assert len(told) == 60

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.reference import WORD, chance, philox_block
from worker.engine.random import philox, uniform

seeds = st.integers(-(2**63), 2**63 - 1)

# Random123's known answers for philox4x32-10: counter, key, block.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (WORD, WORD, WORD, WORD),
        (WORD, WORD),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN_ANSWERS)
def test_the_loop_written_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], block: tuple[int, ...]
) -> None:
    assert tuple(philox_block(counter, key)) == block


def test_the_known_answer_for_nothing_but_zeros_comes_out() -> None:
    zero = torch.zeros(1, dtype=torch.long)
    assert philox(zero, zero).tolist() == [0x6627E8D5]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, WORD), seeds)
def test_any_counter_and_seed_give_the_first_word_of_their_block(counter: int, seed: int) -> None:
    have = philox(torch.tensor([counter]), torch.tensor([seed]))
    assert have.tolist() == philox_block((counter, 0, 0, 0), (seed & WORD, seed >> 32 & WORD))[:1]


def test_every_seed_step_and_channel_has_a_number_of_its_own() -> None:
    numbers = uniform(torch.arange(50), torch.arange(50), channels=9)
    again = uniform(torch.arange(50), torch.arange(50) + 1, channels=9)
    assert len(torch.cat([numbers, again]).unique()) == 2 * 50 * 9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(seeds, st.integers(0, 3072)), min_size=1, max_size=5))
def test_a_sequence_draws_the_same_numbers_in_any_batch(rows: list[tuple[int, int]]) -> None:
    together = uniform(*torch.tensor(rows).T, channels=9)
    for row, (seed, step) in enumerate(rows):
        alone = uniform(torch.tensor([seed]), torch.tensor([step]), channels=9)
        assert torch.equal(together[row], alone[0])
        assert together[row].tolist() == [chance(seed, step, c, 9) for c in range(9)]


def test_numbers_are_spread_evenly_between_0_and_1() -> None:
    numbers = uniform(torch.full((40_000,), 7), torch.arange(40_000), channels=9)
    assert 0 < numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 0.002
    assert abs(numbers.var() - 1 / 12) < 0.001
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    assert ((counts - 3600).abs() < 6 * 3600**0.5).all()


def test_steps_and_channels_do_not_depend_on_one_another() -> None:
    numbers = uniform(torch.full((20_000,), 3), torch.arange(20_000), channels=4)
    streams = torch.cat([numbers, numbers.roll(1, 0)], dim=1).T
    correlation = torch.corrcoef(streams) - torch.eye(8)
    assert correlation.abs().max() < 0.04


@pytest.mark.parametrize(("word", "number"), [(0, 2.0**-24), (WORD, 1 - 2.0**-24)])
def test_not_even_the_extreme_words_give_0_or_1(
    monkeypatch: pytest.MonkeyPatch, word: int, number: float
) -> None:
    def extreme(counter: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return torch.full_like(counter, word)

    monkeypatch.setattr("worker.engine.random.philox", extreme)
    zero = torch.zeros(1, dtype=torch.long)
    assert uniform(zero, zero, channels=1).item() == number

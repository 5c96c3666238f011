"""Split attention in Triton against torch's, and against what it must not read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.engine.kernels.cases import assert_close, random, reach_of, rotary_of
from worker.engine.kernels import plain
from worker.engine.kernels.fused_attention import FusedAttention
from worker.engine.kernels.ops import Reach

H100, SMALL = 132, 1  # multiprocessors
HALF, FULL = torch.float16, torch.float32


def cache_of(
    slots: int, heads: tuple[int, ...], size: int, places: int, dtype: torch.dtype
) -> Tensor:
    return random(slots, *heads, places, size, dtype=dtype, seed=places)


def poisoned(cache: Tensor, seen: Tensor) -> Tensor:
    """No number beyond the places that each slot sees, and in slots that do not run."""
    poison = cache.clone()
    for slot in range(len(cache)):
        poison[slot, ..., int(seen[slot]) if slot < len(seen) else 0 :, :] = torch.nan
    return poison


@pytest.mark.parametrize(
    ("kv_heads", "group", "size", "dtype"),
    [(1, 4, 128, HALF), (2, 3, 8, FULL), (1, 1, 64, HALF), (1, 20, 16, FULL), (2, 2, 4, FULL)],
)
@pytest.mark.parametrize(
    ("positions", "context", "processors"),
    [([63, 5], 130, H100), ([0, 191, 300], 320, H100), ([299], 320, SMALL)],
)
def test_rows_attend_to_the_past_of_their_slot_and_to_nothing_else(
    positions: list[int],
    context: int,
    processors: int,
    kv_heads: int,
    group: int,
    size: int,
    dtype: torch.dtype,
) -> None:
    width, reach = len(positions), reach_of(positions, context)
    q = random(2 * width, kv_heads * group * size, dtype=dtype) / size**0.5
    k = cache_of(width + 1, (2, kv_heads), size, context + 6, dtype)
    v = k.flip(-1).contiguous()
    expected = plain.attend(q, k, v, reach)
    seen = reach.positions + 1
    attended = FusedAttention(processors).attend(q, poisoned(k, seen), poisoned(v, seen), reach)
    assert_close(attended, expected)


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize(("heads", "size", "dtype"), [(2, 128, HALF), (3, 4, FULL), (2, 24, FULL)])
@pytest.mark.parametrize(
    ("lengths", "text"), [([40], 64), ([1, 130, 64], 130), ([300, 1, 70], 300)]
)
def test_rows_attend_to_their_text(
    lengths: list[int], text: int, heads: int, size: int, rotates: bool, dtype: torch.dtype
) -> None:
    width = len(lengths)
    reach = reach_of([0] * width, 1, lengths, text)
    q = random(width, heads * size, dtype=dtype) / size**0.5
    rotary = rotary_of(width, size) if rotates else None
    k = cache_of(width + 1, (heads,), size, text + 2, dtype)
    v = k.flip(-1).contiguous()
    expected = plain.attend_text(q, rotary, k, v, reach)
    seen = reach.text_lengths
    attended = FusedAttention(H100).attend_text(
        q, rotary, poisoned(k, seen), poisoned(v, seen), reach
    )
    assert_close(attended, expected)


def test_large_scores_do_not_overflow() -> None:
    reach = reach_of([299], 320)
    q, k = random(2, 16) * 30, cache_of(1, (2, 1), 16, 320, torch.float32) * 10
    assert_close(FusedAttention(H100).attend(q, k, k, reach), plain.attend(q, k, k, reach))


@pytest.mark.parametrize("position", [-1, -7, 500, 2**40])
@pytest.mark.parametrize("context", [64, 320])
def test_a_frozen_slot_s_position_may_lie_anywhere(position: int, context: int) -> None:
    reach = reach_of([position, 50], context)
    q, k = random(4, 16), cache_of(2, (2, 1), 16, context, torch.float32)
    attended = FusedAttention(H100).attend(q, k, k, reach)
    alike = reach_of([min(max(position, 0), context - 1), 50], context)
    assert_close(attended[1::2], plain.attend(q, k, k, alike)[1::2])
    assert attended.isfinite().all()


def test_a_slot_without_text_gets_zeros() -> None:
    reach = reach_of([0, 0], 1, [0, 3], 300)
    k = torch.full((2, 1, 300, 16), torch.nan)
    k[1, :, :3] = 1
    attended = FusedAttention(H100).attend_text(random(2, 16), None, k, k, reach)
    assert (attended[0] == 0).all()
    assert_close(attended[1], torch.ones(16))


@pytest.mark.parametrize(("width", "context"), [(1, 1024), (1, 3072), (8, 1024), (32, 1024)])
def test_the_splits_fill_an_h100_and_are_not_tiny(width: int, context: int) -> None:
    pairs = 2 * width * 4
    length = FusedAttention(H100).split_length(pairs, context)
    programs = pairs * -(-context // length)
    assert programs > 0.9 * H100
    assert length >= 64
    assert length % 64 == 0
    assert width < 32 or length >= 256


def test_a_slot_s_sums_do_not_depend_on_how_far_a_step_reads() -> None:
    k, v = random(1, 2, 1, 640, 16), random(1, 2, 1, 640, 16)
    q, positions = random(2, 32), torch.tensor([300])
    attended = [
        FusedAttention(H100).attend(q, k, v, Reach(positions, positions, context, 1))
        for context in (320, 512, 640)
    ]
    assert torch.equal(attended[0], attended[1])
    assert torch.equal(attended[0], attended[2])


@pytest.mark.parametrize("places", [1, 64, 256])
def test_short_sequences_are_not_split(places: int) -> None:
    assert FusedAttention(H100).split_length(8, places) == places

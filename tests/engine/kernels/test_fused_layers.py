"""Norms, SwiGLU and rotation in Triton against their plain versions."""

from __future__ import annotations

import pytest
import torch

from tests.engine.kernels.cases import assert_close, random, reach_of, rotary_of
from worker.engine.kernels import fused_layers as fused
from worker.engine.kernels import plain

EPS = 1e-5
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@every_dtype
@pytest.mark.parametrize(("rows", "hidden"), [(2, 2048), (3, 384), (1, 24)])
def test_a_row_is_normalised_whatever_its_length(
    rows: int, hidden: int, dtype: torch.dtype
) -> None:
    x, weight = random(rows, hidden, dtype=dtype), random(hidden, dtype=dtype, seed=1)
    assert_close(fused.norm(x, weight, EPS), plain.rms_norm(x, weight, EPS))


@every_dtype
@pytest.mark.parametrize(("rows", "updated"), [(6, 3), (6, 6), (2, 1), (5, 1)])
def test_rows_without_an_update_get_the_constant(
    rows: int, updated: int, dtype: torch.dtype
) -> None:
    hidden = 40
    x, update = random(rows, hidden, dtype=dtype), random(updated, hidden, dtype=dtype, seed=1)
    weight, constant = random(2, hidden, dtype=dtype, seed=2)
    given = None if rows == updated else constant
    expected_x = x.clone()
    expected = plain.add_norm(expected_x, update, given, weight, EPS)
    normed = fused.add_norm(x, update, given, weight, EPS)
    assert_close(normed, expected)
    assert_close(x, expected_x)


def test_the_sum_is_rounded_before_it_is_normalised() -> None:
    """An update below half a step of the residual stream leaves no trace in the norm."""
    x = torch.full((1, 16), 1024.0, dtype=torch.float16)
    update = torch.zeros_like(x)
    update[0, 3] = 0.25
    weight = torch.ones(16, dtype=torch.float16)
    assert torch.equal(fused.add_norm(x, update, None, weight, EPS), fused.norm(x, weight, EPS))
    assert (x == 1024).all()


@every_dtype
@pytest.mark.parametrize(("rows", "size"), [(2, 1536), (3, 56), (1, 512)])
def test_the_gate_opens_for_the_product(rows: int, size: int, dtype: torch.dtype) -> None:
    gate_up = random(rows, 2 * size, dtype=dtype) * 4
    assert_close(fused.swiglu(gate_up), plain.swiglu(gate_up))


@every_dtype
@pytest.mark.parametrize(
    ("kv_heads", "group", "size"), [(4, 4, 128), (2, 3, 8), (1, 2, 64), (3, 1, 4), (1, 1, 24)]
)
@pytest.mark.parametrize("positions", [[0], [7, 2, 11]])
def test_queries_turn_and_keys_and_values_are_kept_at_their_positions(
    positions: list[int], kv_heads: int, group: int, size: int, dtype: torch.dtype
) -> None:
    width, reach = len(positions), reach_of(positions, 12)
    qkv = random(2 * width, (kv_heads * group + 2 * kv_heads) * size, dtype=dtype)
    rotary = rotary_of(width, size)
    k = torch.full((4, 2, kv_heads, 12, size), torch.nan, dtype=dtype)
    v, expected_k, expected_v = k.clone(), k.clone(), k.clone()
    expected = plain.rotate_store(qkv, rotary, reach, expected_k, expected_v)
    assert_close(fused.rotate_store(qkv, rotary, reach, k, v), expected)
    assert_close(k, expected_k)
    assert_close(v, expected_v)
    assert k.isnan().sum() == k.numel() - width * 2 * kv_heads * size


def test_a_layer_of_a_cache_of_all_layers_is_written_and_no_other() -> None:
    cache = torch.full((2, 2, 3, 2, 1, 12, 8), torch.nan)  # K and V, layers, slots, …
    reach = reach_of([4, 5], 12)
    fused.rotate_store(random(4, 3 * 8), rotary_of(2, 8), reach, cache[0, 1], cache[1, 1])
    assert cache[:, 0].isnan().all()
    assert not cache[:, 1, 0, :, :, 4].isnan().any()
    assert (~cache.isnan()).sum() == 2 * 2 * 2 * 8  # K and V, slots, rows


@pytest.mark.parametrize("position", [-1, 12, 2**40])
def test_nothing_is_written_beyond_the_cache(position: int) -> None:
    cache = torch.full((2, 2, 1, 12, 8), torch.nan)
    fused.rotate_store(
        random(2, 3 * 8), rotary_of(1, 8), reach_of([position], 12), cache, cache.clone()
    )
    assert cache.isnan().all()

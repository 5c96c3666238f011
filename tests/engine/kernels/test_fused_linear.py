"""Products that stream their weights, and which of them is chosen."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.published import DIA
from tests.engine.kernels.cases import assert_close, random
from tests.models import CPU
from worker.engine.kernels import fused_linear
from worker.engine.kernels.fused_linear import (
    TILINGS,
    Tiling,
    decoder_shapes,
    stream_linear,
    timed_linear,
)


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(("rows", "inner", "outputs"), [(1, 24, 20), (3, 300, 65), (16, 512, 64)])
def test_few_rows_are_multiplied_with_a_weight(
    rows: int, inner: int, outputs: int, tiling: Tiling
) -> None:
    x = random(rows, inner, dtype=torch.float16)
    weight = random(outputs, inner, dtype=torch.float16, seed=1) / inner**0.5
    assert_close(stream_linear(x, weight, tiling), F.linear(x, weight))


def test_the_shapes_are_those_of_a_step() -> None:
    assert decoder_shapes(DIA) == {
        (3072, 2048),
        (2048, 2048),
        (16384, 2048),
        (2048, 8192),
        (9252, 2048),
    }


@pytest.fixture
def small_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_linear, "_BEYOND_CACHE", 2**14)


def time_as(monkeypatch: pytest.MonkeyPatch, torchs: float, ours: dict[int, float]) -> None:
    """Lets products take so many seconds: torch's, and ours by a program's outputs."""

    def seconds(linear: Any, x: Tensor, weights: Tensor) -> float:
        assert len(weights) == 4
        return torchs if linear is F.linear else ours[linear.keywords["tiling"].outputs]

    monkeypatch.setattr(fused_linear, "_seconds", seconds)


@pytest.mark.usefixtures("small_timings")
def test_the_fastest_product_is_used_for_the_shape_and_rows_it_was_timed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time_as(monkeypatch, 1.0, {16: 0.9, 32: 0.5, 64: 0.8})
    chosen = timed_linear([(64, 32)], [4], torch.float16, CPU)
    assert chosen.tilings == {((64, 32), 4): TILINGS[1]}
    x, weight = random(3, 32, dtype=torch.float16), random(64, 32, dtype=torch.float16, seed=1)
    assert_close(chosen(x, weight), F.linear(x, weight))  # ours
    assert torch.equal(chosen(x[:1], weight), F.linear(x[:1], weight))  # torch's


@pytest.mark.usefixtures("small_timings")
def test_torch_s_product_is_kept_where_ours_is_not_clearly_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time_as(monkeypatch, 1.0, {16: 0.99, 32: 1.1, 64: 2.0})
    assert not timed_linear([(64, 32)], [4], torch.float16, CPU).tilings


@pytest.mark.usefixtures("small_timings")
def test_a_fast_product_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    time_as(monkeypatch, 1.0, {16: 0.1, 32: 0.1, 64: 0.1})
    monkeypatch.setattr(
        fused_linear, "stream_linear", lambda x, weight, tiling: F.linear(x, weight) * 1.1
    )
    assert not timed_linear([(64, 32)], [4], torch.float16, CPU).tilings


@pytest.mark.usefixtures("small_timings")
def test_a_product_that_does_not_compile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(x: Tensor, weight: Tensor, tiling: Tiling) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    time_as(monkeypatch, 1.0, {})
    monkeypatch.setattr(fused_linear, "stream_linear", fail)
    assert not timed_linear([(64, 32)], [4], torch.float16, CPU).tilings
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == len(TILINGS)


def test_float32_is_left_to_torch() -> None:
    assert not timed_linear([(64, 32)], [4], torch.float32, CPU).tilings

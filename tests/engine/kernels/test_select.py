"""Operations are compared with their twins before they are used, and replaced where they fail."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.engine.kernels.test_fused_draw import config_of
from tests.models import CPU
from worker.dia.config import Generation
from worker.engine.kernels import select
from worker.engine.kernels.fused import fused_ops
from worker.engine.kernels.ops import Ops, Reach
from worker.engine.kernels.plain import plain_ops
from worker.engine.kernels.probe import Probe
from worker.engine.sampling import SamplingBatch

CONFIG = config_of(Generation.JUNE)
PLAIN = plain_ops(CONFIG, CPU)
# Stands for the fused operations: the plain ones, but poison that is not attended to is no matter.
SOUND = replace(
    PLAIN,
    attend=lambda q, k, v, reach: PLAIN.attend(q, k.nan_to_num(), v.nan_to_num(), reach),
    attend_text=lambda q, rotary, k, v, reach: PLAIN.attend_text(
        q, rotary, k.nan_to_num(), v.nan_to_num(), reach
    ),
)


def verified(fused: Ops, dtype: torch.dtype = torch.float32) -> Ops:
    return select.verified(fused, PLAIN, Probe(CONFIG, CPU, dtype))


@pytest.mark.parametrize("generation", list(Generation))
def test_kernels_that_do_what_they_should_are_used(
    generation: Generation, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(generation)
    plain, fused = plain_ops(config, CPU), fused_ops(config, CPU)
    assert select.verified(fused, plain, Probe(config, CPU, torch.float16)) == fused
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sound_operations_pass_in_every_type(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    assert verified(SOUND, dtype) == SOUND
    assert not caplog.records


def slightly_off(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return PLAIN.norm(x, weight, eps) * 1.001


def forgets_the_constant(
    x: Tensor, update: Tensor, constant: Tensor | None, weight: Tensor, eps: float
) -> Tensor:
    nothing = None if constant is None else torch.zeros_like(constant)
    return PLAIN.add_norm(x, update, nothing, weight, eps)


def does_not_compile(gate_up: Tensor) -> Tensor:
    raise RuntimeError("Failed to find C compiler.\nPlease install one")


def writes_next_door(qkv: Tensor, rotary: Tensor, reach: Reach, k: Tensor, v: Tensor) -> Tensor:
    near = Reach((reach.positions + 1) % reach.context, reach.text_lengths, reach.context, 1)
    return PLAIN.rotate_store(qkv, rotary, near, k, v)


def reads_one_too_many(q: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    further = Reach(reach.positions + 1, reach.text_lengths, reach.context, reach.text)
    return PLAIN.attend(q, k, v, further)


def reads_all(q: Tensor, rotary: Tensor | None, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
    everything = torch.full_like(reach.text_lengths, reach.text)
    return PLAIN.attend_text(
        q, rotary, k, v, Reach(reach.positions, everything, reach.context, reach.text)
    )


def ignores_top_p(logits: Tensor, batch: SamplingBatch) -> Tensor:
    return PLAIN.draw(logits, replace(batch, top_p=torch.ones_like(batch.top_p)))


@pytest.mark.parametrize(
    ("name", "broken", "fault"),
    [
        ("norm", slightly_off, "off by 0.001"),
        ("add_norm", forgets_the_constant, "off by"),
        ("swiglu", does_not_compile, "RuntimeError: Failed to find C compiler."),
        ("rotate_store", writes_next_door, "reads or writes where it must not"),
        ("attend", reads_one_too_many, "reads or writes where it must not"),
        ("attend_text", reads_all, "reads or writes where it must not"),
        ("draw", ignores_top_p, "of the codes differ"),
    ],
)
def test_a_broken_kernel_is_replaced_alone_and_the_log_says_why(
    name: str, broken: Callable[..., Tensor], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    fused = replace(SOUND, **{name: broken})
    assert verified(fused) == replace(fused, **{name: getattr(PLAIN, name)})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"kernels: {name} is replaced" in record.getMessage()
    assert fault in record.getMessage()


def test_a_cpu_computes_plainly() -> None:
    assert select.select_ops(CONFIG, CPU, torch.float32).attend is PLAIN.attend


@pytest.mark.parametrize(("asked", "level"), [(True, logging.WARNING), (False, logging.INFO)])
def test_a_gpu_without_triton_or_not_asked_for_it_computes_plainly(
    asked: bool, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(select, "plain_ops", lambda *_: PLAIN)
    monkeypatch.setitem(sys.modules, "worker.engine.kernels.fused", None)
    gpu = torch.device("cuda")
    assert select.select_ops(CONFIG, gpu, torch.float16, fused=asked) is PLAIN
    (record,) = caplog.records
    assert record.levelno == level
    assert "plain torch on cuda" in record.getMessage()

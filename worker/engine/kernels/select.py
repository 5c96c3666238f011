"""Which version of each operation a device gets: the fused one, if it does there what it should.

A kernel that was never seen on a GPU model may not compile there, or compute something else with
another compiler. So each is compared with its plain twin at start, on the shapes of the model. One
that fails is replaced by its twin, which is slower and right, and the log says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from worker.dia.config import DiaConfig
from worker.engine.kernels.ops import Ops
from worker.engine.kernels.plain import plain_ops
from worker.engine.kernels.probe import Probe

logger = logging.getLogger(__name__)

_ROWS = (2, 4, 8, 16)  # for which the matrix products are timed: twice the slots


def select_ops(
    config: DiaConfig,
    device: torch.device,
    dtype: torch.dtype,
    fused: bool = True,
    timed: bool = True,
) -> Ops:
    """The operations of a decode step.

    Args:
        config: the checkpoint's.
        device: where they run; fused kernels need a CUDA device.
        dtype: of weights and caches.
        fused: false for plain operations everywhere.
        timed: false for torch's own matrix products. Else each is done by whichever is faster
            here, and two processes that time differently may add in different orders.

    Returns:
        Plain operations on a CPU; on a GPU the fused ones that passed their comparison.
    """
    plain = plain_ops(config, device)
    if not fused or device.type != "cuda":
        logger.info("kernels: plain torch on %s", device.type)
        return plain
    try:
        from worker.engine.kernels.fused import fused_ops
        from worker.engine.kernels.fused_linear import decoder_shapes, timed_linear
    except ImportError as error:
        logger.warning("kernels: plain torch on %s: %s", device.type, error)
        return plain
    ops = verified(fused_ops(config, device), plain, Probe(config, device, dtype))
    if not timed:
        return ops
    return replace(ops, linear=timed_linear(decoder_shapes(config), _ROWS, dtype, device))


def verified(fused: Ops, plain: Ops, probe: Probe) -> Ops:
    """`fused`, with the plain twin of every operation that fails or differs in its place."""
    faults = {name: _fault(compare, fused, plain) for name, compare in probe.comparisons().items()}
    broken: dict[str, Any] = {}
    for name, fault in faults.items():
        if fault:
            logger.warning("kernels: %s is replaced by its plain version: %s", name, fault)
            broken[name] = getattr(plain, name)
    return replace(fused, **broken)


def _fault(compare: Callable[[Ops, Ops], str | None], fused: Ops, plain: Ops) -> str | None:
    try:
        return compare(fused, plain)
    # What a compiler, a driver or a missing C compiler raises has no common type, and whatever it
    # is, the twin takes over and the log tells.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}".splitlines()[0]

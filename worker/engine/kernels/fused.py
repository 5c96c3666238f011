"""The operations of a decode step in Triton.

The first step on a device compiles eight kernels, about a second each, for any number of slots and
any context: norm, residual and norm, SwiGLU, rotation and store, attention to the past and to the
text, the joining of their splits, the draw. (Three more are compiled where matrix products are
timed.) What changes from step to step, or with the slots, is therefore no constant of a kernel.
Triton keeps what it compiled under `TRITON_CACHE_DIR`, `~/.triton/cache` unless set, for the next
start. It calls a C compiler for that, which an image has to have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from worker.dia.config import DiaConfig
from worker.engine.kernels.fused_attention import FusedAttention
from worker.engine.kernels.fused_draw import FusedDraw
from worker.engine.kernels.fused_layers import add_norm, norm, rotate_store, swiglu
from worker.engine.kernels.ops import Ops

_PROCESSORS = 132  # of an H100; assumed where there is no device to ask


def fused_ops(config: DiaConfig, device: torch.device) -> Ops:
    """All operations in Triton, but for the matrix products; see `fused_linear.py`."""
    processors = _PROCESSORS
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    attention = FusedAttention(processors)
    return Ops(
        linear=F.linear,
        norm=norm,
        add_norm=add_norm,
        swiglu=swiglu,
        rotate_store=rotate_store,
        attend=attention.attend,
        attend_text=attention.attend_text,
        draw=FusedDraw(config),
    )

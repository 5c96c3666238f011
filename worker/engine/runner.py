"""Runs the model over the slots: prefill of some, decode steps of all.

Knows tensors and slots. Does not know which sequence is whose turn, nor when one is cancelled.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worker.dia.model import DiaModel
from worker.engine.cache import KVCache
from worker.engine.graphs import Buckets, GraphedStep
from worker.engine.kernels.ops import Ops
from worker.engine.kernels.plain import plain_ops
from worker.engine.options import DEFAULTS, EngineOptions
from worker.engine.prefill import Prefill
from worker.engine.progress import Look
from worker.engine.sequence import Sequence
from worker.engine.state import SlotState
from worker.engine.step import DecodeStep, StepShape

CONTEXT_STEP = 128  # without graphs, attention reads the cache up to a multiple of this


class Runner:
    """A model, and the memory for `slots` sequences."""

    def __init__(
        self,
        model: DiaModel,
        slots: int,
        options: EngineOptions = DEFAULTS,
        ops: Ops | None = None,
    ) -> None:
        weight = model.decoder.logits.weight
        self.model, self.config, self.device = model, model.config, weight.device
        self.cache = KVCache(model.config, slots, self.device, weight.dtype)
        self.state = SlotState(model.config, slots, self.device)
        self.logits: Tensor | None = None  # [2, N, C, V] of the last step: without, with the text
        frames = min(options.prompt_frames, model.config.decoder.max_positions)
        prompts = 0 if options.same_shapes else options.prompts
        self._prefill = Prefill(model, self.cache, prompts, frames)
        self._largest: StepShape | None = None
        if options.same_shapes:
            self._largest = Buckets(model.config, slots).largest
        self._decode = DecodeStep(
            model, self.cache, self.state, ops or plain_ops(model.config, self.device)
        )
        self._graphed: GraphedStep | None = None
        if options.graphs:
            buckets = Buckets(model.config, slots)
            self._graphed = GraphedStep(self._decode, buckets, options.record)

    @torch.inference_mode()
    def warm(self) -> None:
        """Compiles kernels and records the common steps; call while no sequence runs."""
        if self._graphed is not None:
            self._graphed.warm([self._largest] if self._largest else None)

    @torch.inference_mode()
    def start(self, admitted: list[tuple[int, Sequence]]) -> None:
        """Encodes the sequences' texts and decodes their prompts into their slots' caches.

        Args:
            admitted: at most `footprint.AT_ONCE` slots with their sequences.
        """
        for slot, sequence in admitted:
            self.state.load(slot, sequence)
        self._prefill(admitted, self.state.history)

    @torch.inference_mode()
    def step(self, shape: StepShape) -> None:
        """Decodes one position of the first `shape.width` slots. Does not wait for the device."""
        run = self._graphed or self._decode
        if self._largest is not None:
            self.logits = run(self._largest)[:, : shape.width]
        else:
            self.logits = run(shape if self._graphed else self._rounded(shape))

    @torch.inference_mode()
    def look(self, width: int, window: int) -> Look:
        """Asks how far the first `width` slots are; `window` steps at most since the last look."""
        return Look(self.state, width, window)

    def clear(self, slot: int) -> None:
        """Freezes a slot: steps no longer change it."""
        self.state.clear(slot)

    def release_memory(self) -> None:
        """Gives cached memory back to the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rounded(self, shape: StepShape) -> StepShape:
        context = -(-shape.context // CONTEXT_STEP) * CONTEXT_STEP
        return replace(shape, context=min(context, self.cache.max_positions))

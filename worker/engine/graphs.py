"""Decode steps recorded once and played back: one launch instead of some three hundred.

A recording is good for one shape, so shapes are rounded up to buckets. A bucket's first step runs
as it is written, which compiles its kernels and reserves their workspaces; its second is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.engine.options import Record, Recording
from worker.engine.step import StepShape

logger = logging.getLogger(__name__)

CONTEXTS = (512, 1024, 2048)  # and the model's own
COMMON_CONTEXTS = (1024, 2048)  # of a chunk with a voice prompt; recorded at start

Step = Callable[[StepShape], Tensor]


class Buckets:
    """The shapes that steps are rounded up to."""

    def __init__(self, config: DiaConfig, slots: int) -> None:
        longest = config.decoder.max_positions
        self.contexts = sorted({*(each for each in CONTEXTS if each < longest), longest})
        self.widths = sorted({2**power for power in range(slots.bit_length())} | {slots})
        self._text, self._vocabulary = config.encoder.max_positions, config.decoder.vocabulary

    def of(self, shape: StepShape) -> StepShape:
        """The smallest bucket that holds a shape."""
        return StepShape(
            width=next(width for width in self.widths if width >= shape.width),
            context=next(context for context in self.contexts if context >= shape.context),
            text=self._text,
            widest=self._vocabulary,
        )

    @property
    def largest(self) -> StepShape:
        """The bucket that holds every shape."""
        return StepShape(self.widths[-1], self.contexts[-1], self._text, self._vocabulary)

    def common(self) -> list[StepShape]:
        """The buckets of the usual job, the largest first: the others fit into its memory."""
        longest = self.contexts[-1]
        contexts = {min(context, longest) for context in COMMON_CONTEXTS}
        return [
            StepShape(width, context, self._text, self._vocabulary)
            for width in reversed(self.widths)
            for context in sorted(contexts, reverse=True)
        ]


class GraphedStep:
    """A step with a recording for each bucket.

    Args:
        step: what is recorded; reads and writes tensors of fixed addresses only.
        buckets: the shapes.
        record: how to record; tests pass their own.
    """

    def __init__(self, step: Step, buckets: Buckets, record: Record | None = None) -> None:
        self._step, self._buckets = step, buckets
        self._record = record or CudaRecorder()
        self._recorded: dict[StepShape, tuple[Recording, Tensor]] = {}
        self._tried: set[StepShape] = set()

    def __call__(self, shape: StepShape) -> Tensor:
        """Runs the step of the bucket that holds `shape`; the logits' first N slots are its."""
        return self._run(self._buckets.of(shape))[:, : shape.width]

    def warm(self, shapes: Iterable[StepShape] | None = None) -> None:
        """Records buckets while no sequence runs; without `shapes` the common ones."""
        for shape in self._buckets.common() if shapes is None else shapes:
            self._run(shape)
            self._run(shape)

    def _run(self, shape: StepShape) -> Tensor:
        if shape not in self._tried:
            self._tried.add(shape)
            return self._step(shape)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(lambda: self._step(shape))
        recording, logits = self._recorded[shape]
        recording.replay()
        return logits


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        """Records a step; nothing runs until the recording is replayed."""
        graph = torch.cuda.CUDAGraph()
        # Other threads decode audio meanwhile: their allocations must not end the recording.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()
        return graph, logits

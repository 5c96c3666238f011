"""One generation: a chunk's text and prompt in, codec frames out.

A `Sequence` owns its request and its outcome. It does not know its neighbours in the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.errors import InvalidInput

if TYPE_CHECKING:  # scheduling works on sequences, and does without torch
    from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How codes are drawn. Defaults: the April release's own."""

    seed: int = 42
    cfg_scale: float = 3.0  # guidance: logits = conditional + scale · (conditional − unconditional)
    temperature: float = 1.3  # 0 takes the likeliest code
    top_p: float = 0.95
    top_k: int = 35  # candidates in each channel


@dataclass(eq=False)
class Sequence:
    """A request for frames, and what has come of it."""

    text_ids: list[int]  # the prompt's transcript first
    prompt: Tensor  # [P, C] codec frames, P = 0 without a voice
    max_new_frames: int
    params: SamplingParams = field(default_factory=SamplingParams)
    on_frames: Callable[[int], None] | None = None  # called with the number of new frames

    steps: int = 0  # decode steps that it has taken part in
    frames: int = 0  # new frames decoded so far
    codes: Tensor | None = None  # [T, C] on the CPU, once finished
    ended: bool = False  # by the model itself, rather than by `max_new_frames`
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def prompt_frames(self) -> int:
        """Frames of the prompt; the first position that is decoded."""
        return self.prompt.shape[0]

    @property
    def frame_limit(self) -> int:
        """Position at which the end is forced in channel 0."""
        return self.prompt_frames + 1 + self.max_new_frames

    def check_fits(self, max_positions: int, max_delay: int, max_text: int) -> None:
        """Refuses what the model has no positions for.

        Raises:
            InvalidInput: naming the budget that is exceeded.
        """
        needed = self.prompt_frames + self.max_new_frames + max_delay
        if self.max_new_frames < 1 or needed > max_positions:
            room = max_positions - max_delay - self.prompt_frames
            raise InvalidInput(
                f"max_tokens is {self.max_new_frames}; beside a prompt of {self.prompt_frames} "
                f"frames valid is 1 to {room}"
            )
        if not 1 <= len(self.text_ids) <= max_text:
            raise InvalidInput(f"text takes {len(self.text_ids)} bytes; valid is 1 to {max_text}")

    def advance(self, frames: int) -> None:
        """Notes how many new frames there are by now, and tells whoever watches."""
        new = frames - self.frames
        if new > 0:
            self.frames = frames
            if self.on_frames is not None:
                self.on_frames(new)

"""One generation: a chunk's text and prompt in, codec frames out.

A `Sequence` owns its request and its outcome. It does not know its neighbours in the batch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from worker.errors import InvalidInput

if TYPE_CHECKING:  # scheduling works on sequences, and does without torch
    from torch import Tensor

News = TypeVar("News")

logger = logging.getLogger(__name__)


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
    on_codes: Callable[[Tensor], None] | None = None  # called with the new frames [t, C], in order
    job: Hashable = None  # sequences of one job share it; `None` stands for itself alone
    deadline: float | None = None  # `time.monotonic()` after which nobody wants it any more

    steps: int = 0  # decode steps that it has taken part in
    frames: int = 0  # new frames decoded so far
    codes: Tensor | None = None  # [T, C] on the CPU, once finished
    ended: bool = False  # by the model itself, rather than by `max_new_frames`
    cancelled: threading.Event = field(default_factory=threading.Event)
    expired: bool = False  # dropped because its deadline had passed
    failure: Exception | None = None  # of its generation alone, or of `on_frames` or `on_codes`

    @property
    def prompt_frames(self) -> int:
        """Frames of the prompt; the first position that is decoded."""
        return self.prompt.shape[0]

    @property
    def frame_limit(self) -> int:
        """Position at which the end is forced in channel 0."""
        return self.prompt_frames + 1 + self.max_new_frames

    def is_unwanted(self, now: float) -> bool:
        """Whether it was cancelled, or its deadline has passed; notes the latter in `expired`.

        Args:
            now: `time.monotonic()`, seconds.
        """
        if self.cancelled.is_set():
            return True
        if self.deadline is not None and now > self.deadline:
            self.expired = True
        return self.expired

    def check_fits(
        self,
        max_positions: int,
        max_delay: int,
        max_text: int,
        *,
        channels: int | None = None,
        codes: int | None = None,
    ) -> None:
        """Refuses what the model has no positions, channels or codes for.

        Args:
            max_positions: frames that the decoder has room for, prompt and delay included.
            max_delay: frames by which the last channel lags behind the first.
            max_text: bytes that the encoder has room for.
            channels: of a frame, C; not checked where it is not given.
            codes: that a codebook has, numbered from 0; not checked where it is not given.

        Raises:
            InvalidInput: naming what is exceeded.
        """
        self._check_lengths(max_positions, max_delay, max_text)
        if channels is not None and self.prompt.shape[1:] != (channels,):
            shape = list(self.prompt.shape)
            raise InvalidInput(f"the prompt's shape is {shape}; valid is [frames, {channels}]")
        if codes is not None and self.prompt.numel():
            lowest, highest = int(self.prompt.min()), int(self.prompt.max())
            if lowest < 0 or highest >= codes:
                wrong = lowest if lowest < 0 else highest
                raise InvalidInput(f"the prompt holds code {wrong}; valid is 0 to {codes - 1}")

    def _check_lengths(self, max_positions: int, max_delay: int, max_text: int) -> None:
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
            self._tell(self.on_frames, new)

    def deliver(self, codes: Tensor) -> None:
        """Hands new frames [t, C] to `on_codes`; nothing where there are none."""
        if codes.shape[0] > 0:
            self._tell(self.on_codes, codes)

    def _tell(self, callback: Callable[[News], None] | None, news: News) -> None:
        """Calls one who watches; if that fails, this sequence ends and its neighbours go on."""
        if callback is None or self.failure is not None:  # after a failure, news would have gaps
            return
        try:
            callback(news)
        except Exception as error:  # foreign code, of which anything may be expected
            logger.exception("whoever watches a sequence failed; it is cancelled")
            self.failure = error
            self.cancelled.set()

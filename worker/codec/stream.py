"""Decoding codes while they are still being made.

Knows which frames have been handed in, which of their samples have been handed out, and the frames
between that are still needed. Forgets all others, so its memory does not grow with the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.codec.codec import Codec


class StreamDecoder:
    """Codes in pieces of any size → the samples that a whole decode would give.

    A frame's samples are final once the `codec.context_frames` frames after it are known. Each
    push that makes samples final also decodes that many known frames on both sides again, so few
    large pieces cost less than many small ones.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._frames = torch.empty(0, codec.codebooks, dtype=torch.int64)
        self._emitted = 0  # frames at the head of `_frames` kept only as context

    def push(self, codes: Tensor) -> Tensor:
        """Takes the next frames.

        Args:
            codes: [t, codebooks] integers; t may be 0.

        Returns:
            The samples that are final now and were not before, [n] float32 on the CPU; n is a
            multiple of the hop length and may be 0.

        Raises:
            ValueError: as `Codec.decode`; the stream is then as if the piece had not come.
        """
        self._codec.check(codes)
        self._frames = torch.cat([self._frames, codes.to("cpu", torch.int64)])
        return self._emit(len(self._frames) - self._codec.context_frames)

    def finish(self) -> Tensor:
        """Ends the stream: the remaining samples, [n] float32. The next push begins a new one."""
        rest = self._emit(len(self._frames))
        self._frames, self._emitted = self._frames[:0], 0
        return rest

    def _emit(self, final: int) -> Tensor:
        """Decodes the frames up to `final` that have not been handed out, then forgets."""
        if final <= self._emitted:
            return torch.empty(0)
        hop = self._codec.hop_length
        samples = self._codec.decode(self._frames)[self._emitted * hop : final * hop]
        forgotten = max(0, final - self._codec.context_frames)
        self._frames = self._frames[forgotten:].clone()
        self._emitted = final - forgotten
        return samples

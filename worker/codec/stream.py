"""Decoding codes while they are still being made.

Knows which frames have been handed in, which of their samples have been handed out, and the frames
between that are still needed. Forgets all others, so its memory does not grow with the stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.codec.codec import Codec

FIRST_FRAMES = 30  # 0.35 s of codes, of which the first 20 frames, 0.23 s, can be heard
PIECE_FRAMES = 43  # 0.5 s


class StreamDecoder:
    """Codes in pieces of any size → the samples that a whole decode would give.

    A frame's samples are final once the `codec.context_frames` frames after it are known, and a
    decode that makes samples final also decodes that many frames on both sides again. So it waits
    until enough has come in: with 10 frames of context a piece of 43 decodes 63 frames, a piece of
    one frame would decode 21.

    Args:
        codec: What decodes.
        first_frames: The first samples come as soon as this many frames are known, or as soon as
            one of them is final where that is later.
        piece_frames: Each later piece has the samples of at least this many frames.

    Raises:
        ValueError: if one of the two is not positive.
    """

    def __init__(
        self, codec: Codec, first_frames: int = FIRST_FRAMES, piece_frames: int = PIECE_FRAMES
    ) -> None:
        if min(first_frames, piece_frames) < 1:
            raise ValueError(
                "first_frames and piece_frames must be at least 1, "
                f"not {first_frames} and {piece_frames}"
            )
        self._codec = codec
        self._first = max(1, first_frames - codec.context_frames)  # of them, how many are final
        self._piece = piece_frames
        self._frames = torch.empty(0, codec.codebooks, dtype=torch.int64)
        self._emitted = 0  # frames at the head of `_frames` kept only as context
        self._wanted = self._first  # frames that must be final for a decode

    def push(self, codes: Tensor) -> Tensor:
        """Takes the next frames.

        Args:
            codes: [t, codebooks] integers; t may be 0.

        Returns:
            The samples of the next piece, or of all that is final now where that is more, [n]
            float32 on the CPU; n is a multiple of the hop length, and 0 while too few are final.

        Raises:
            ValueError: as `Codec.decode`; the stream is then as if the piece had not come.
            OutOfMemory: as `Codec.decode`; the piece is kept, and the next call tries again.
        """
        self._codec.check(codes)
        self._frames = torch.cat([self._frames, codes.to("cpu", torch.int64)])
        final = len(self._frames) - self._codec.context_frames
        return self._emit(final) if final - self._emitted >= self._wanted else torch.empty(0)

    def finish(self) -> Tensor:
        """Ends the stream: the remaining samples, [n] float32. The next push begins a new one."""
        rest = self._emit(len(self._frames))
        self._frames, self._emitted, self._wanted = self._frames[:0], 0, self._first
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
        self._wanted = self._piece
        return samples

"""A job's audio while it is still being generated: pieces in the order of the text.

Decodes what a listener asks for, when it asks; what waits for its turn waits as codes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.codec.codec import Codec
from worker.codec.stream import StreamDecoder
from worker.speech import Speech


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of a job's audio; joined in order, the pieces are all of it."""

    chunk: int  # index of the chunk that it is from
    index: int  # of the piece in the job
    waveform: NDArray[np.float32]  # [N], N >= 1, at the codec's sample rate
    start_s: float  # in the whole audio
    end_s: float
    frames: int  # codec frames, N / hop length
    last_of_chunk: bool


async def cut_pieces(speech: Speech, codec: Codec) -> AsyncGenerator[Piece, None]:
    """Hands out a speech's audio: of the first unfinished chunk at once, then of the next.

    A chunk without any frames has no piece.

    Args:
        speech: live, and entered.
        codec: decodes, in a thread of its own.

    Raises:
        WorkerError: whatever ended a chunk's generation, after the pieces of those before it.
    """
    index = position = 0  # position in samples
    for chunk, take in enumerate(speech.takes):
        decoder = StreamDecoder(codec, piece_frames=1)  # `Take` has waited for enough
        last = False
        while not last:
            codes, last = await take.next()
            waveform = await asyncio.to_thread(_decode, decoder, codes, last)
            if len(waveform):
                start, position = position, position + len(waveform)
                yield Piece(
                    chunk=chunk,
                    index=index,
                    waveform=waveform,
                    start_s=start / codec.sample_rate,
                    end_s=position / codec.sample_rate,
                    frames=len(waveform) // codec.hop_length,
                    last_of_chunk=last,
                )
                index += 1


def _decode(decoder: StreamDecoder, codes: Tensor, last: bool) -> NDArray[np.float32]:
    waveform = decoder.push(codes)
    if last:
        waveform = torch.cat([waveform, decoder.finish()])
    samples: NDArray[np.float32] = waveform.numpy()
    return samples

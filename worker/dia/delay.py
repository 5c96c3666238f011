"""The delay pattern: channel c of a frame is spoken `delays[c]` positions after channel 0.

A sequence is [BOS, frame 0, frame 1, …]; position t of channel c holds its element
t − delays[c], and BOS where that is negative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

UNKNOWN = -1  # a position that the model has yet to predict


def delay_prompt(codes: Tensor, delays: Sequence[int], bos_id: int) -> Tensor:
    """Lays a prompt out as the decoder reads it.

    Args:
        codes: [P, C] codec frames, P ≥ 0.
        delays: frames, one for each channel.
        bos_id: what stands before the first frame.

    Returns:
        [P + 1 + max(delays), C] ids by position; `UNKNOWN` where the model predicts.
    """
    frames, channels = codes.shape
    positions = torch.arange(frames + 1 + max(delays)).unsqueeze(1)  # [T, 1]
    elements = positions - torch.as_tensor(delays)  # [T, C]
    bos = codes.new_full((1, channels), bos_id)
    sequence = torch.cat([bos, codes])  # [1 + P, C]
    delayed = sequence.gather(0, elements.clamp(0, frames))
    return delayed.masked_fill(elements > frames, UNKNOWN)


def undelay(
    delayed: Tensor, delays: Sequence[int], start: int, end: int, codes: int = 1024
) -> Tensor:
    """Takes frames back out of a delayed sequence.

    Args:
        delayed: [T, C] ids by position, T ≥ end + max(delays).
        delays: frames, one for each channel.
        start: element of the first frame wanted.
        end: element after the last one.
        codes: how many ids are codes; those above are special.

    Returns:
        [end − start, C] codec frames; whatever is no code becomes 0, as in the reference.
    """
    elements = torch.arange(start, end).unsqueeze(1)  # [N, 1]
    frames = delayed.gather(0, elements + torch.as_tensor(delays))
    return frames.masked_fill((frames < 0) | (frames >= codes), 0)

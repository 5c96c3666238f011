"""How far around a frame the decoder looks, read off its convolutions."""

from __future__ import annotations

from torch import nn

from worker.codec.network import Decoder


def context_frames(decoder: Decoder) -> int:
    """Latent frames needed on each side of a frame to decode its samples exactly.

    Starts from the samples of one frame and widens them backwards through every convolution.
    The pointwise and skip paths of a residual unit lie inside the reach of its dilated
    convolution, so the convolutions in their order of running are all that counts.
    """
    convolutions = [m for m in decoder.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    hop = 1
    for convolution in convolutions:
        hop *= convolution.stride[0]
    first, last = 0, hop - 1  # positions at the output of the convolution looked at
    for convolution in reversed(convolutions):
        first, last = _inputs(convolution, first, last)
    return max(-first, last)


def _inputs(convolution: nn.Conv1d | nn.ConvTranspose1d, first: int, last: int) -> tuple[int, int]:
    """The first and last input position that outputs `first` … `last` read."""
    padding = int(convolution.padding[0])
    reach = convolution.dilation[0] * (convolution.kernel_size[0] - 1)
    stride = convolution.stride[0]
    if isinstance(convolution, nn.ConvTranspose1d):
        # Input i writes to outputs i * stride - padding … i * stride - padding + reach.
        return -((reach - padding - first) // stride), (last + padding) // stride
    return first * stride - padding, last * stride - padding + reach

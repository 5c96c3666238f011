"""The codec as the worker uses it: one waveform or one run of codes at a time, no gradients.

Knows the device and the precision of its network, and checks what it is given. Keeps no state
between calls; `stream.py` does.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.codec.receptive import context_frames


class Codec:
    """A Descript Audio Codec with weights, ready to encode and decode.

    Args:
        network: The network, already on its device and in its precision.
        fingerprint: Changes with the weights and the dimensions; codes made by one codec are
            meaningless to another, so whatever keeps codes keeps this beside them.
    """

    def __init__(self, network: CodecNetwork, fingerprint: str) -> None:
        self.network = network.eval()
        self.fingerprint = fingerprint

    @property
    def config(self) -> CodecConfig:
        """The dimensions."""
        return self.network.config

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.frame_rate

    @property
    def codebooks(self) -> int:
        """Codes of one frame."""
        return self.config.codebooks

    @cached_property
    def context_frames(self) -> int:
        """Frames on each side of a frame that its samples depend on."""
        return context_frames(self.network.decoder)

    @torch.inference_mode()
    def encode(self, waveform: Tensor) -> Tensor:
        """Turns sound into codes.

        Args:
            waveform: [N] floating point, mono, at `sample_rate`, full scale ±1. Zeros are added
                at its end up to a whole number of frames.

        Returns:
            Codes [ceil(N / hop_length), codebooks], int64, on the CPU.

        Raises:
            ValueError: if the waveform has another shape, is empty, or is not floating point.
        """
        if waveform.ndim != 1 or not len(waveform) or not waveform.is_floating_point():
            raise ValueError(
                "waveform must be a floating point tensor [N] with N >= 1, "
                f"not {waveform.dtype} {list(waveform.shape)}"
            )
        padded = F.pad(self._to_network(waveform), (0, -len(waveform) % self.hop_length))
        latent = self.network.encoder(padded[None, None])  # [1, latent_dim, T]
        codes: Tensor = self.network.quantizer(latent).codes  # [1, K, T]
        return codes[0].T.contiguous().cpu()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Turns codes into sound.

        Args:
            codes: [T, codebooks] integers from 0 to `codebook_size` - 1.

        Returns:
            Waveform [T * hop_length], float32 within ±1, on the CPU.

        Raises:
            ValueError: if the codes have another shape or type, or one is out of range.
        """
        self.check(codes)
        if not len(codes):
            return torch.empty(0)
        ids = codes.to(self._weight.device, torch.int64).T[None]  # [1, K, T]
        waveform: Tensor = self.network.decoder(self.network.quantizer.from_codes(ids))
        return waveform[0, 0].float().cpu()

    def check(self, codes: Tensor) -> None:
        """Raises ValueError unless `codes` can be decoded; see `decode`."""
        if codes.ndim != 2 or codes.shape[1] != self.codebooks:
            raise ValueError(f"codes must be [T, {self.codebooks}], not {list(codes.shape)}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers, not {codes.dtype}")
        if not len(codes):
            return
        lowest, highest = (int(bound) for bound in torch.aminmax(codes))
        if lowest < 0 or highest >= self.config.codebook_size:
            raise ValueError(
                f"codes must be from 0 to {self.config.codebook_size - 1}, "
                f"these are from {lowest} to {highest}"
            )

    @property
    def _weight(self) -> Tensor:
        return self.network.encoder.conv1.weight

    def _to_network(self, waveform: Tensor) -> Tensor:
        return waveform.to(self._weight.device, self._weight.dtype)

"""Keeps codebooks alive: entries that nothing chooses move to where something is."""

from __future__ import annotations

from typing import cast

import torch

from worker.codec.network import CodecNetwork, Quantized, Quantizer


class CodebookWatch:
    """Counts which entries are chosen, and restarts those that were not."""

    def __init__(self, network: CodecNetwork) -> None:
        config = network.config
        self._quantizers = _quantizers(network)
        device = self._quantizers[0].codebook.weight.device
        self._counts = torch.zeros(config.codebooks, config.codebook_size, device=device)

    @torch.no_grad()
    def count(self, quantized: Quantized) -> None:
        """Notes a batch's choices."""
        codes = quantized.codes.transpose(0, 1).flatten(1)  # [K, B · T]
        self._counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=self._counts.dtype))

    def used(self) -> list[int]:
        """Entries of each codebook that were chosen since the last restart."""
        return [int(used) for used in (self._counts > 0).sum(1)]

    @torch.no_grad()
    def restart(self, quantized: Quantized) -> None:
        """Puts each entry that was never chosen onto a vector of this batch; counts anew."""
        for index, quantizer in enumerate(self._quantizers):
            dead = (self._counts[index] == 0).nonzero().flatten()
            vectors = quantized.projected[:, index].float().transpose(1, 2).flatten(0, 1)
            chosen = torch.randint(len(vectors), (len(dead),), device=dead.device)
            quantizer.codebook.weight[dead] = vectors[chosen]
        self._counts.zero_()


def unit_normal(network: CodecNetwork) -> None:
    """Codebooks as they begin; smaller ones collapse."""
    for quantizer in _quantizers(network):
        torch.nn.init.normal_(quantizer.codebook.weight)


def _quantizers(network: CodecNetwork) -> list[Quantizer]:
    return cast("list[Quantizer]", list(network.quantizer.quantizers))

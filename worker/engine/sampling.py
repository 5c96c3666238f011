"""From a step's logits to its codes: guidance, filters, draw. Never waits for the device.

Source: nari-labs/dia, `_decoder_step` and `_sample_next_token` at the April 2025 release and at
0626. One departure: where none of the guided candidates is a valid code (possible with very small
`top_k`), the best valid one stands in, instead of an undefined draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.dia.config import DiaConfig, Generation

APRIL_EOS_FACTOR = 0.8
_COLDEST = 1e-4  # divides logits where the temperature is 0 and the draw is not used
_NO = float("-inf")


@dataclass(frozen=True)
class SamplingBatch:
    """The settings of N sequences, as tensors."""

    cfg_scale: Tensor  # [N]
    temperature: Tensor  # [N]
    top_p: Tensor  # [N]
    top_k: Tensor  # [N] int64
    widest: int  # the largest top_k, known to the host


class Sampler:
    """Draws the codes of one step for a checkpoint's generation."""

    def __init__(self, config: DiaConfig, device: torch.device) -> None:
        self._eos = config.eos_id
        self._generation = config.generation
        vocabulary = config.decoder.vocabulary
        ids = torch.arange(vocabulary, device=device).expand(config.decoder.channels, -1)
        last = torch.full((config.decoder.channels, 1), self._eos - 1, device=device)
        last[0] = self._eos  # only the first channel may end the sequence
        self._forbidden = ids > last  # [C, V]

    def draw(
        self, unconditional: Tensor, conditional: Tensor, batch: SamplingBatch, chances: Tensor
    ) -> Tensor:
        """Codes of one step.

        Args:
            unconditional: [N, C, V] float32 logits without the text.
            conditional: [N, C, V] float32 logits with it.
            batch: the sequences' settings.
            chances: [N, C] uniform numbers in (0, 1).

        Returns:
            [N, C] int64.
        """
        scale = batch.cfg_scale[:, None, None]
        guided = conditional + scale * (conditional - unconditional)
        if self._generation is Generation.JUNE:
            scores = self._candidates(guided, conditional, batch)
        else:
            scores = guided.masked_fill(self._forbidden, _NO)
            scores[:, 0, self._eos] *= APRIL_EOS_FACTOR
        best = scores.argmax(-1)
        drawn = _draw_filtered(self._rule_eos(scores, best), batch, chances)
        return torch.where(batch.temperature.unsqueeze(1) == 0, best, drawn)

    def _candidates(self, guided: Tensor, conditional: Tensor, batch: SamplingBatch) -> Tensor:
        ids = guided.topk(batch.widest, sorted=True).indices
        dropped = torch.arange(batch.widest, device=ids.device) >= batch.top_k[:, None, None]
        kept = torch.zeros_like(guided, dtype=torch.bool).scatter(-1, ids, ~dropped.expand_as(ids))
        best_valid = guided.masked_fill(self._forbidden, _NO).argmax(-1, keepdim=True)
        kept = kept.scatter(-1, best_valid, True)
        return conditional.masked_fill(~kept | self._forbidden, _NO)

    def _rule_eos(self, scores: Tensor, best: Tensor) -> Tensor:
        """The end is drawn only where it is the likeliest; in 0626 it then is certain."""
        ends = best[:, 0] == self._eos  # [N]
        eos = scores[:, 0, self._eos]
        scores = scores.clone()
        scores[:, 0, self._eos] = torch.where(ends, eos, _NO)
        if self._generation is Generation.JUNE:
            others = scores[:, 0, : self._eos]
            scores[:, 0, : self._eos] = others.masked_fill(ends.unsqueeze(1), _NO)
        return scores


def _draw_filtered(scores: Tensor, batch: SamplingBatch, chances: Tensor) -> Tensor:
    """Temperature, top-k, top-p, and the code in whose share of the mass the chance falls."""
    heat = batch.temperature.clamp_min(_COLDEST)[:, None, None]
    values, ids = (scores / heat).topk(batch.widest, sorted=True)  # [N, C, K]
    ranks = torch.arange(batch.widest, device=ids.device)
    values = values.masked_fill(ranks >= batch.top_k[:, None, None], _NO)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the likelier codes
    probabilities = probabilities.masked_fill(before > batch.top_p[:, None, None], 0.0)
    mass = probabilities.cumsum(-1)
    rank = (mass <= chances.unsqueeze(-1) * mass[..., -1:]).sum(-1, keepdim=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    # Where the logits are NaN no code is likely; on a GPU an index of −1 would stop the device.
    return ids.gather(-1, torch.minimum(rank, last).clamp_min(0)).squeeze(-1)

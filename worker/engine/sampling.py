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
from worker.engine.random import uniform

APRIL_EOS_FACTOR = 0.8
COLDEST = 1e-4  # divides logits where the temperature is 0 and the draw is not used
NO_CODE = -1  # what is drawn from logits that are no numbers
_NO = float("-inf")
_IDS = 1 << 16  # more than there are ids


@dataclass(frozen=True)
class SamplingBatch:
    """The settings of N sequences, as tensors."""

    cfg_scale: Tensor  # [N]
    temperature: Tensor  # [N]
    top_p: Tensor  # [N]
    top_k: Tensor  # [N] int64
    seed: Tensor  # [N] int64
    step: Tensor  # [N] int64, counted from each sequence's first decoded position
    widest: int  # at least the largest top_k, known to the host


class Sampler:
    """Draws the codes of one step for a checkpoint's generation."""

    def __init__(self, config: DiaConfig, device: torch.device) -> None:
        channels, vocabulary = config.decoder.channels, config.decoder.vocabulary
        self._eos, self._generation = config.eos_id, config.generation
        # Ids above these are no codes; only the first channel may end the sequence.
        self._last = torch.full((channels, 1), config.eos_id - 1, device=device)
        self._last[0] = config.eos_id
        self._forbidden = vocabulary - config.eos_id  # at most, in any channel

    def draw(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """Codes of one step.

        Args:
            logits: [2, N, C, V], without and with the text.
            batch: the sequences' settings.

        Returns:
            [N, C] int64; `NO_CODE` where the logits are no numbers.
        """
        return self.choose(logits, batch, uniform(batch.seed, batch.step, logits.shape[2]))

    def choose(self, logits: Tensor, batch: SamplingBatch, chances: Tensor) -> Tensor:
        """As `draw`, by uniform numbers [N, C] in (0, 1)."""
        unconditional, conditional = logits.float()
        guided = conditional + batch.cfg_scale[:, None, None] * (conditional - unconditional)
        # So many of the likeliest that the best valid one is among them, whatever is forbidden.
        ids = _likeliest(guided, min(batch.widest + self._forbidden, guided.shape[-1]))
        valid = ids <= self._last  # [N, C, K]
        if self._generation is Generation.JUNE:
            ranks = torch.arange(ids.shape[-1], device=ids.device)
            first_valid = valid & (valid.cumsum(-1) == 1)
            valid = (valid & (ranks < batch.top_k[:, None, None])) | first_valid
            scores = conditional.gather(-1, ids)
        else:
            scores = guided.gather(-1, ids)
            scores = torch.where(self._is_end(ids), scores * APRIL_EOS_FACTOR, scores)
        scores = scores.masked_fill(~valid, _NO)
        best = ids.gather(-1, _ordered(scores, ids)[..., :1])  # [N, C, 1]
        scores = self._rule_end(scores, ids, best)
        drawn = _draw_filtered(scores, ids, batch, chances)
        codes = torch.where(batch.temperature.unsqueeze(1) == 0, best.squeeze(-1), drawn)
        return codes.masked_fill(guided.sum(-1).isnan(), NO_CODE)

    def _is_end(self, ids: Tensor) -> Tensor:
        # In the other channels it is forbidden.
        return ids == self._eos

    def _rule_end(self, scores: Tensor, ids: Tensor, best: Tensor) -> Tensor:
        """The end is drawn only where it is the likeliest; in 0626 it then is certain."""
        ends, is_end = best == self._eos, self._is_end(ids)
        refused = is_end & ~ends
        if self._generation is Generation.JUNE:
            refused = is_end != ends
        return scores.masked_fill(refused, _NO)


def _draw_filtered(scores: Tensor, ids: Tensor, batch: SamplingBatch, chances: Tensor) -> Tensor:
    """Temperature, top-k, top-p, and the code in whose share of the mass the chance falls."""
    scores = scores / batch.temperature.clamp_min(COLDEST)[:, None, None]
    order = _ordered(scores, ids)  # [N, C, K]
    values, ids = scores.gather(-1, order), ids.gather(-1, order)
    ranks = torch.arange(ids.shape[-1], device=ids.device)
    values = values.masked_fill(ranks >= batch.top_k[:, None, None], _NO)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # mass of the likelier codes
    probabilities = probabilities.masked_fill(before > batch.top_p[:, None, None], 0.0)
    mass = probabilities.cumsum(-1)
    rank = (mass <= chances.unsqueeze(-1) * mass[..., -1:]).sum(-1, keepdim=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    # Where the logits are NaN no code is likely; on a GPU an index of −1 would stop the device.
    return ids.gather(-1, torch.minimum(rank, last).clamp_min(0)).squeeze(-1)


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """[…, V] float32 → the ids of the `count` highest, highest first.

    Of equal scores, which half precision makes often, the lower id comes first: on no device does
    `topk` promise an order. So it is asked for integers that are never equal.
    """
    size = scores.shape[-1]
    keys = _keys(scores, torch.arange(size, device=scores.device), size)
    return size - 1 - keys.topk(count, sorted=True).values % size


def _ordered(scores: Tensor, ids: Tensor) -> Tensor:
    """[…, K] the places of the scores, highest first; of equal scores the lower id first."""
    return _keys(scores, ids, _IDS).argsort(-1, descending=True)


def _keys(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """[…] int64 that order like (score, −id), for ids below `size`.

    The bits of a float order like the number once those of a negative one are flipped; −0, which
    is equal to 0, is made 0 first.
    """
    bits = (scores + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.long() * size + (size - 1 - ids)

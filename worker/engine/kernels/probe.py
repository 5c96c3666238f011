"""Inputs of a model's real shapes on which a fused operation has to do what its twin does.

Three slots at different positions, with texts of different lengths, and poison wherever nothing
may be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from worker.dia.config import DiaConfig, Generation
from worker.engine.footprint import ROWS
from worker.engine.kernels.ops import Ops, Reach
from worker.engine.sampling import SamplingBatch

Comparison = Callable[[Ops, Ops], str | None]

# Differences, as shares of the largest value, that come of rounding in another order.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_DRAWN_ELSE = 0.01  # of the codes: a chance may fall on the boundary between two
_SLOTS = 3
_STEPS = 8  # draws of each slot and channel
_PAST, _TEXT = 1024, 1024  # places that are attended to, at most


class Probe:
    """Random inputs, the same in every process."""

    def __init__(self, config: DiaConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config, self._decoder, self._device = config, config.decoder, device
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        past, text = (
            min(_PAST, self._decoder.max_positions),
            min(_TEXT, config.encoder.max_positions),
        )
        self._reach = Reach(
            torch.tensor([past - 1, past // 3, 0], device=device),
            torch.tensor([text // 3, text, 1], device=device),
            past,
            text,
        )

    def comparisons(self) -> dict[str, Comparison]:
        """By the operation's name, how a fused version is compared with its twin.

        Each returns what is wrong, or nothing.
        """
        return {
            "norm": self._norm,
            "add_norm": self._add_norm,
            "swiglu": self._swiglu,
            "rotate_store": self._rotate_store,
            "attend": self._attend,
            "attend_text": self._attend_text,
            "draw": self._draw,
        }

    def _random(self, *shape: int, size: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator) * size
        return numbers.to(self._device, self._dtype)

    def _norm(self, fused: Ops, plain: Ops) -> str | None:
        x, weight = self._random(_SLOTS, self._decoder.hidden), self._random(self._decoder.hidden)
        eps = self._config.norm_eps
        return self._difference([(fused.norm(x, weight, eps), plain.norm(x, weight, eps))])

    def _add_norm(self, fused: Ops, plain: Ops) -> str | None:
        hidden, eps = self._decoder.hidden, self._config.norm_eps
        weight, x = self._random(hidden), self._random(ROWS * _SLOTS, hidden)
        pairs = []
        for rows, constant in ((_SLOTS, self._random(hidden)), (ROWS * _SLOTS, None)):
            update, one, other = self._random(rows, hidden), x.clone(), x.clone()
            have = fused.add_norm(one, update, constant, weight, eps)
            pairs += [(have, plain.add_norm(other, update, constant, weight, eps)), (one, other)]
        return self._difference(pairs)

    def _swiglu(self, fused: Ops, plain: Ops) -> str | None:
        gate_up = self._random(_SLOTS, 2 * self._decoder.intermediate)
        return self._difference([(fused.swiglu(gate_up), plain.swiglu(gate_up))])

    def _rotate_store(self, fused: Ops, plain: Ops) -> str | None:
        decoder, head = self._decoder, self._decoder.head_dim
        qkv = self._random(ROWS * _SLOTS, (decoder.query_heads + 2 * decoder.kv_heads) * head)
        rotary, k = self._rotary(head), self._poisoned_past()
        v, plain_k, plain_v = k.clone(), k.clone(), k.clone()
        have = fused.rotate_store(qkv, rotary, self._reach, k, v)
        want = plain.rotate_store(qkv, rotary, self._reach, plain_k, plain_v)
        return self._difference([(have, want), (k, plain_k), (v, plain_v)])

    def _attend(self, fused: Ops, plain: Ops) -> str | None:
        q = self._random(
            ROWS * _SLOTS, self._decoder.query_heads * self._decoder.head_dim, size=0.2
        )
        k, v = self._poisoned_past(), self._poisoned_past()
        seen = self._reach.positions + 1
        have = fused.attend(q, k, v, self._reach)
        want = plain.attend(q, _cleaned(k, seen), _cleaned(v, seen), self._reach)
        return self._difference([(have, want)])

    def _attend_text(self, fused: Ops, plain: Ops) -> str | None:
        heads, size = self._decoder.cross_heads, self._decoder.cross_head_dim
        q = self._random(_SLOTS, heads * size, size=0.2)
        rotates = self._config.generation is Generation.APRIL
        rotary = self._rotary(size) if rotates else None
        lengths = self._reach.text_lengths
        k, v = (self._poisoned((_SLOTS, heads, self._reach.text, size), lengths) for _ in range(2))
        have = fused.attend_text(q, rotary, k, v, self._reach)
        want = plain.attend_text(q, rotary, _cleaned(k, lengths), _cleaned(v, lengths), self._reach)
        return self._difference([(have, want)])

    def _draw(self, fused: Ops, plain: Ops) -> str | None:
        rows = _SLOTS * _STEPS
        shape = (ROWS, rows, self._decoder.channels, self._decoder.vocabulary)
        logits = self._random(*shape, size=3.0)
        batch = SamplingBatch(
            cfg_scale=self._column([3.0, 1.5, 0.0]),
            temperature=self._column([0.0, 1.3, 1.8]),
            top_p=self._column([1.0, 0.95, 0.6]),
            top_k=self._column([45, 35, 1]).long(),
            seed=torch.arange(rows, device=self._device) << 30,
            step=torch.arange(rows, device=self._device),
            widest=45,
        )
        have, want = fused.draw(logits, batch), plain.draw(logits, batch)
        differing = (have != want).float().mean().item()
        return f"{differing:.1%} of the codes differ" if differing > _DRAWN_ELSE else None

    def _column(self, values: Iterable[float]) -> Tensor:
        """[rows of the draw]: each of the values in turn."""
        return torch.tensor(list(values), device=self._device).repeat(_STEPS)

    def _rotary(self, size: int) -> Tensor:
        angles = torch.rand(_SLOTS, size // 2, generator=self._generator) * 6
        return torch.stack([angles.cos(), angles.sin()], 1).to(self._device)

    def _poisoned_past(self) -> Tensor:
        shape = (_SLOTS, ROWS, self._decoder.kv_heads, self._reach.context, self._decoder.head_dim)
        return self._poisoned(shape, self._reach.positions + 1)

    def _poisoned(self, shape: tuple[int, ...], seen: Tensor) -> Tensor:
        """A cache that is no number beyond the places that its slots see."""
        numbers = self._random(*shape)
        return numbers.masked_fill(~_seen(numbers, seen), torch.nan)

    def _difference(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> str | None:
        """What is wrong with the first of each pair, if something is."""
        for have, want in pairs:
            have, want = have.float(), want.float()
            if not torch.equal(have.isnan(), want.isnan()):
                return "it reads or writes where it must not"
            have, want = have.nan_to_num(0.0), want.nan_to_num(0.0)
            off = ((have - want).abs().max() / want.abs().max()).item()
            if off > TOLERANCES[self._dtype]:
                return f"it is off by {off:.2g} of the largest value"
        return None


def _seen(cache: Tensor, seen: Tensor) -> Tensor:
    """[S, 1…, T, 1]: true for the places that a slot sees."""
    places = torch.arange(cache.shape[-2], device=cache.device) < seen.unsqueeze(1)
    return places.view(-1, *[1] * (cache.dim() - 3), places.shape[1], 1)


def _cleaned(cache: Tensor, seen: Tensor) -> Tensor:
    """Without the poison, which the plain versions multiply by 0."""
    return cache.masked_fill(~_seen(cache, seen), 0.0)

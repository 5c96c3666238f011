"""Dia written the long way: padded text, masks, both guidance rows, every position at once.

Reads a native checkpoint's tensors as they lie in the file. Shares no code with `worker.dia`, so
that what the worker leaves out (padding, the unconditional text) is computed here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worker.dia.config import DiaConfig, Generation


def encode_padded(tensors: dict[str, Tensor], config: DiaConfig, ids: list[int]) -> Tensor:
    """[max_positions, E]: the text, and what the encoder makes of the padding after it."""
    padded = torch.zeros(config.encoder.max_positions, dtype=torch.long)
    padded[: len(ids)] = torch.tensor(ids)
    real = padded != 0
    mask = real[:, None] == real[None, :]  # padding sees padding, text sees text
    positions = torch.arange(len(padded))
    x = tensors["encoder.embedding.weight"][padded]
    for layer in range(config.encoder.layers):
        at = f"encoder.layers.{layer}"
        normed = _norm(x, tensors[f"{at}.pre_sa_norm.weight"], config)
        q, k, v = _project(tensors, f"{at}.self_attention", normed, normed)
        q, k = _rotate(q, positions, config), _rotate(k, positions, config)
        x = x + _attend(tensors, f"{at}.self_attention", q, k, v, mask)
        x = x + _mlp(tensors, f"{at}.mlp", _norm(x, tensors[f"{at}.post_sa_norm.weight"], config))
    return _norm(x, tensors["encoder.norm.weight"], config)


def decoder_logits(
    tensors: dict[str, Tensor], config: DiaConfig, ids: list[int], tokens: Tensor
) -> Tensor:
    """[T, C, V] logits after every position of the delayed codes [T, C]; `ids` may be zeros."""
    encoded = encode_padded(tensors, config, ids)
    real = torch.zeros(len(encoded), dtype=torch.bool)
    real[: len(ids)] = torch.tensor(ids) != 0
    if not real.any():
        real[:] = True  # without text, every position is alike
    length = len(tokens)
    positions, causal = torch.arange(length), torch.ones(length, length).tril().bool()
    x = sum(
        (tensors[f"decoder.embeddings.{c}.weight"][tokens[:, c]] for c in range(tokens.shape[1])),
        torch.zeros(length, config.decoder.hidden),
    )
    for layer in range(config.decoder.layers):
        at = f"decoder.layers.{layer}"
        normed = _norm(x, tensors[f"{at}.pre_sa_norm.weight"], config)
        q, k, v = _project(tensors, f"{at}.self_attention", normed, normed)
        q, k = _rotate(q, positions, config), _rotate(k, positions, config)
        x = x + _attend(tensors, f"{at}.self_attention", q, k, v, causal)
        normed = _norm(x, tensors[f"{at}.pre_ca_norm.weight"], config)
        q, k, v = _project(tensors, f"{at}.cross_attention", normed, encoded)
        if config.generation is Generation.APRIL:
            q, k = _rotate(q, positions, config), _rotate(k, torch.arange(len(k)), config)
        x = x + _attend(tensors, f"{at}.cross_attention", q, k, v, real.expand(length, -1))
        x = x + _mlp(tensors, f"{at}.mlp", _norm(x, tensors[f"{at}.pre_mlp_norm.weight"], config))
    x = _norm(x, tensors["decoder.norm.weight"], config)
    return torch.einsum("th,hcv->tcv", x, tensors["decoder.logits_dense.weight"])


def _norm(x: Tensor, weight: Tensor, config: DiaConfig) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight


def _project(
    tensors: dict[str, Tensor], at: str, x: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[T, heads, D] queries of x, keys and values of the source."""
    q = torch.einsum("th,hnd->tnd", x, tensors[f"{at}.q_proj.weight"])
    k = torch.einsum("sh,hnd->snd", source, tensors[f"{at}.k_proj.weight"])
    v = torch.einsum("sh,hnd->snd", source, tensors[f"{at}.v_proj.weight"])
    return q, k, v


def _rotate(x: Tensor, positions: Tensor, config: DiaConfig) -> Tensor:
    rotated = torch.empty_like(x)
    half = x.shape[-1] // 2
    for d in range(half):
        angle = positions[:, None] / config.rope_theta ** (2 * d / x.shape[-1])
        first, second = x[..., d], x[..., d + half]
        rotated[..., d] = first * angle.cos() - second * angle.sin()
        rotated[..., d + half] = second * angle.cos() + first * angle.sin()
    return rotated


def _attend(
    tensors: dict[str, Tensor], at: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor
) -> Tensor:
    group = q.shape[1] // k.shape[1]  # query heads that share a key-value head
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // group].T  # scale 1.0
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        out[:, head] = weights @ v[:, head // group]
    return torch.einsum("tnd,ndh->th", out, tensors[f"{at}.o_proj.weight"])


def _mlp(tensors: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    gate, up = torch.einsum("th,hkf->ktf", x, tensors[f"{at}.wi_fused.weight"])
    return (gate * gate.sigmoid() * up) @ tensors[f"{at}.wo.weight"]

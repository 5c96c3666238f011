"""The leaves of the network: normalisation, rotary positions, projections and the MLP.

All of them act on each token alone. How tokens attend to one another is the caller's affair
(`Attend` in `model.py`), because decoding, prefill and training differ in nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, computed in float32."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[…, H] over its root mean square, times `weight` [H]; in float32, then the type of `x`."""
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.float()).to(x.dtype)


class Linear(nn.Linear):
    """A projection without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)


def store_by_columns(network: nn.Module) -> None:
    """Lays each projection's weight out column by column; its shape and its values stay.

    A CPU's BLAS multiplies a row or two by it a quarter faster: it reads it without packing it.
    """
    for module in network.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


class GatedMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)), gate and up in one matrix, gate first."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up = Linear(hidden, 2 * intermediate)
        self.down = Linear(intermediate, hidden)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        down: Tensor = self.down(F.silu(gate) * up)
        return down


class SelfAttention(nn.Module):
    """Projections of grouped-query self-attention; queries, keys and values in one matrix."""

    def __init__(self, hidden: int, query_heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = (query_heads, kv_heads, kv_heads)
        self.head_dim = head_dim
        self.qkv = Linear(hidden, sum(self.heads) * head_dim)
        self.output = Linear(query_heads * head_dim, hidden)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[…, H] → queries […, Hq, D], keys and values […, Hkv, D]; positions not applied yet."""
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = heads.split(self.heads, dim=-2)
        return q, k, v


class CrossAttention(nn.Module):
    """Projections of the attention from audio frames to text."""

    def __init__(self, hidden: int, text_hidden: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = Linear(hidden, heads * head_dim)
        self.key_value = Linear(text_hidden, 2 * heads * head_dim)
        self.output = Linear(heads * head_dim, hidden)

    def project_query(self, x: Tensor) -> Tensor:
        """[…, H] → […, heads, D]."""
        query: Tensor = self.query(x).unflatten(-1, (-1, self.head_dim))
        return query

    def project_text(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """[S, E] → keys and values, each [S, heads, D]."""
        key, value = self.key_value(encoded).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=-2)
        return key, value


def rotary_table(positions: int, head_dim: int, theta: float) -> Tensor:
    """[positions, 2, D/2] float32: cosines and sines of every position's angles."""
    fraction = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.arange(positions, dtype=torch.float32).unsqueeze(1) / theta**fraction
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Applies rotary positions to the two halves of each head, in float32.

    Args:
        x: […, N, heads, D].
        rotary: [N, 2, D/2], rows of `rotary_table`.
    """
    cos, sin = rotary.unsqueeze(1).unbind(-2)  # each [N, 1, D/2]
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

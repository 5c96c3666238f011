"""The building blocks: what they compute does not depend on how their weights lie in memory."""

from __future__ import annotations

import torch

from worker.dia.layers import GatedMLP, store_by_columns


def test_weights_that_lie_column_by_column_give_the_same_and_keep_their_shape() -> None:
    torch.manual_seed(0)
    mlp = GatedMLP(24, 40)
    x = torch.randn(2, 24)
    before, shapes = mlp(x), [weight.shape for weight in mlp.parameters()]
    store_by_columns(mlp)
    assert torch.allclose(mlp(x), before, atol=1e-6)
    assert [weight.shape for weight in mlp.parameters()] == shapes
    assert all(weight.t().is_contiguous() for weight in mlp.parameters())

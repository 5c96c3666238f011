"""The model's beginning, its loss, and the weights that are kept."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.train_tiny.attend import hidden_states
from builder.train_tiny.layout import IGNORED, Batch
from worker.dia.config import DiaConfig
from worker.dia.model import DiaModel

CHANNEL_WEIGHTS = (2.0, 1.5, 1.2)  # of the first channels; one for all others


def fresh_model(config: DiaConfig, device: torch.device) -> DiaModel:
    """A model to begin with, prepared.

    Variance is kept by every matrix; what is added to the residual stream is small at first. As
    attention is not scaled by 1/√d, the queries and keys are, each by its root.
    """
    model = DiaModel(config).to(device)
    depth = 1 / math.sqrt(2 * config.decoder.layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.ones_(parameter)
        elif name == "decoder.embedding.weight":
            nn.init.normal_(parameter, std=1 / math.sqrt(config.decoder.channels))
        elif "embedding" in name:
            nn.init.normal_(parameter)
        else:
            scale = depth if name.endswith(("output.weight", "down.weight")) else 1.0
            nn.init.normal_(parameter, std=scale / math.sqrt(parameter.shape[1]))
    _soften_attention(model)
    model.prepare()
    return model


@torch.no_grad()
def _soften_attention(model: DiaModel) -> None:
    config = model.config
    encoder, decoder = config.encoder, config.decoder
    parameters = dict(model.named_parameters())

    def soften(name: str, rows: int, head_dim: int) -> None:
        parameters[name][:rows] *= head_dim**-0.25

    for index in range(encoder.layers):
        rows = 2 * encoder.heads * encoder.head_dim
        soften(f"encoder.layers.{index}.attention.qkv.weight", rows, encoder.head_dim)
    cross = decoder.cross_heads * decoder.cross_head_dim
    for index in range(decoder.layers):
        at = f"decoder.layers.{index}"
        rows = (decoder.query_heads + decoder.kv_heads) * decoder.head_dim
        soften(f"{at}.self_attention.qkv.weight", rows, decoder.head_dim)
        soften(f"{at}.cross_attention.query.weight", cross, decoder.cross_head_dim)
        soften(f"{at}.cross_attention.key_value.weight", cross, decoder.cross_head_dim)


def losses_of(model: DiaModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """[C] mean cross-entropy of what each channel predicts, in nats; and the attention astray."""
    hidden, astray = hidden_states(model, batch)
    logits = model.logits(hidden)  # [R, N, C, V]
    each = F.cross_entropy(
        logits.flatten(0, 2), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(batch.targets)
    counted = (batch.targets != IGNORED).sum((0, 1)).clamp_min(1)
    return each.sum((0, 1)) / counted, astray


def weighted(losses: Tensor) -> Tensor:
    """The channels' losses as one; the first ones carry the words."""
    weights = torch.ones_like(losses)
    weights[: len(CHANNEL_WEIGHTS)] = losses.new_tensor(CHANNEL_WEIGHTS)[: len(losses)]
    return (losses * weights).sum() / weights.sum()

"""Makes `dia-tiny`, the model that stands in where there are neither weights nor a GPU.

    python -m builder.make_tiny models/dia-tiny

The same architecture as Dia 1.6B (0626 maths, 9 channels, delays, 3072 positions) with 1.6 M
parameters, and a codec of the same shape as DAC 44.1 kHz with 0.5 M. The weights are random: it
runs every line that the real model runs, and what it says is noise, up to each chunk's limit.
They come from a generator whose stream numpy guarantees, so every machine makes the same bytes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from builder.model_folder import write_model_folder
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.dia.checkpoint import empty_dia
from worker.dia.config import DecoderConfig, DiaConfig, EncoderConfig, Generation

SEED = 1626
LOUDNESS = 0.004  # of the last convolution of the codec: noise at a bearable level

DIA = DiaConfig(
    generation=Generation.JUNE,
    encoder=EncoderConfig(
        layers=2,
        hidden=64,
        intermediate=256,
        heads=4,
        head_dim=16,
        vocabulary=256,
        max_positions=1024,
    ),
    decoder=DecoderConfig(
        layers=3,
        hidden=64,
        intermediate=256,
        query_heads=4,
        kv_heads=2,
        head_dim=16,
        cross_heads=4,
        cross_head_dim=16,
        channels=9,
        vocabulary=1028,
        max_positions=3072,
    ),
    delays=(0, 8, 9, 10, 11, 12, 13, 14, 15),
)
CODEC = CodecConfig(
    encoder_channels=8,
    encoder_strides=(2, 4, 8, 8),
    decoder_channels=128,
    decoder_strides=(8, 8, 4, 2),
    latent_dim=128,
    codebooks=9,
    codebook_size=1024,
    codebook_dim=8,
    sample_rate=44_100,
)


@torch.no_grad()
def make_tiny(folder: Path) -> None:
    """Writes `config.json`, `model.safetensors` and `codec/` into a folder."""
    random = np.random.RandomState(SEED)
    model = empty_dia(DIA, torch.device("cpu"), torch.float32)
    _fill(model, random)
    # A model of noise ends at random, or at once: this one does not end.
    model.decoder.logits.weight[DIA.eos_id].zero_()
    codec = CodecNetwork(CODEC)
    _fill(codec, random)
    codec.decoder.conv2.weight.mul_(LOUDNESS)
    write_model_folder(folder, model, codec, trained=False)


@torch.no_grad()
def _fill(module: nn.Module, random: np.random.RandomState) -> None:
    """Matrices so that variance is kept, tables of unit variance, norms and Snakes of one."""
    for name, parameter in module.named_parameters():
        if "norm" in name or "alpha" in name:
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            spread = 1.0 if "embedding" in name or "codebook" in name else _spread(parameter)
            values = random.standard_normal(tuple(parameter.shape)) * spread
            parameter.copy_(torch.from_numpy(values))


def _spread(weight: Tensor) -> float:
    return 1 / math.sqrt(math.prod(weight.shape[1:]))


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]))

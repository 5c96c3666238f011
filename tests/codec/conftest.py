"""A codec small enough to check exhaustively: the real one's shape, few channels."""

from __future__ import annotations

import pytest
import torch

from worker.codec.codec import Codec
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork

TINY = CodecConfig(
    encoder_channels=8,
    encoder_strides=(2, 4),
    decoder_channels=16,
    decoder_strides=(4, 2),
    latent_dim=32,
    codebooks=3,
    codebook_size=64,
    codebook_dim=4,
    sample_rate=8000,
)


def random_network(config: CodecConfig, seed: int = 0) -> CodecNetwork:
    """Default weights, which decode random codes to peaks of about 0.3, and varied Snakes."""
    torch.manual_seed(seed)
    network = CodecNetwork(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.2, 2.0)
    return network


@pytest.fixture(scope="session")
def tiny_config() -> CodecConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_codec() -> Codec:
    return Codec(random_network(TINY), fingerprint="tiny")


@pytest.fixture(scope="session")
def codes() -> torch.Tensor:
    """90 frames, more than the tiny codec looks at from any one of them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(TINY.codebook_size, (90, TINY.codebooks), generator=generator)

"""The dimensions of a codec, and the two spellings in which checkpoints give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from worker.errors import InvalidCheckpoint


@dataclass(frozen=True)
class CodecConfig:
    """Dimensions of a Descript Audio Codec.

    Attributes:
        encoder_channels: Channels after the encoder's first convolution; each block doubles them.
        encoder_strides: Downsampling of each encoder block, first to last.
        decoder_channels: Channels after the decoder's first convolution; each block halves them.
        decoder_strides: Upsampling of each decoder block, first to last.
        latent_dim: Channels between encoder, quantizer and decoder.
        codebooks: Number of residual codebooks, which is the number of codes in a frame.
        codebook_size: Entries of each codebook.
        codebook_dim: Dimensions of a codebook entry.
        sample_rate: Samples per second.

    Raises:
        InvalidCheckpoint: if the dimensions contradict each other; the message names the field.
    """

    encoder_channels: int
    encoder_strides: tuple[int, ...]
    decoder_channels: int
    decoder_strides: tuple[int, ...]
    latent_dim: int
    codebooks: int
    codebook_size: int
    codebook_dim: int
    sample_rate: int

    def __post_init__(self) -> None:
        for name in ("encoder_strides", "decoder_strides"):
            strides = getattr(self, name)
            # An odd stride does not divide its padding evenly: T frames would not decode to
            # exactly T hops, which everything downstream counts on.
            if not strides or any(stride < 2 or stride % 2 for stride in strides):
                raise InvalidCheckpoint(
                    f"codec config: {name} is {strides}, must be even numbers from 2"
                )
        if prod(self.encoder_strides) != prod(self.decoder_strides):
            raise InvalidCheckpoint(
                f"codec config: encoder_strides {self.encoder_strides} and decoder_strides "
                f"{self.decoder_strides} must have the same product"
            )
        if self.decoder_channels % 2 ** len(self.decoder_strides):
            raise InvalidCheckpoint(
                f"codec config: decoder_channels is {self.decoder_channels}, must be divisible "
                f"by {2 ** len(self.decoder_strides)}"
            )

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return prod(self.encoder_strides)

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @classmethod
    def from_transformers(cls, values: Mapping[str, Any]) -> CodecConfig:
        """Reads a `config.json` as `transformers.DacConfig` writes it.

        `upsampling_ratios` and `hidden_size` may be absent, since transformers derives them.

        Raises:
            InvalidCheckpoint: if a key is missing or has an impossible value; the key is named.
        """
        channels = _integer(values, "encoder_hidden_size")
        down = _integers(values, "downsampling_ratios")
        has_up = values.get("upsampling_ratios") is not None
        has_latent = values.get("hidden_size") is not None
        config = cls(
            encoder_channels=channels,
            encoder_strides=down,
            decoder_channels=_integer(values, "decoder_hidden_size"),
            decoder_strides=_integers(values, "upsampling_ratios") if has_up else down[::-1],
            latent_dim=(
                _integer(values, "hidden_size") if has_latent else channels * 2 ** len(down)
            ),
            codebooks=_integer(values, "n_codebooks"),
            codebook_size=_integer(values, "codebook_size"),
            codebook_dim=_integer(values, "codebook_dim"),
            sample_rate=_integer(values, "sampling_rate"),
        )
        hop = values.get("hop_length", config.hop_length)
        if hop != config.hop_length:
            raise InvalidCheckpoint(
                f"codec config: hop_length is {hop!r}, downsampling_ratios give {config.hop_length}"
            )
        return config

    @classmethod
    def from_descript(cls, kwargs: Mapping[str, Any]) -> CodecConfig:
        """Reads `metadata["kwargs"]` of a Descript `weights.pth`; `latent_dim` may be None.

        Raises:
            InvalidCheckpoint: if a key is missing or has an impossible value; the key is named.
        """
        channels = _integer(kwargs, "encoder_dim")
        down = _integers(kwargs, "encoder_rates")
        has_latent = kwargs.get("latent_dim") is not None
        return cls(
            encoder_channels=channels,
            encoder_strides=down,
            decoder_channels=_integer(kwargs, "decoder_dim"),
            decoder_strides=_integers(kwargs, "decoder_rates"),
            latent_dim=(
                _integer(kwargs, "latent_dim") if has_latent else channels * 2 ** len(down)
            ),
            codebooks=_integer(kwargs, "n_codebooks"),
            codebook_size=_integer(kwargs, "codebook_size"),
            codebook_dim=_integer(kwargs, "codebook_dim"),
            sample_rate=_integer(kwargs, "sample_rate"),
        )

    def to_transformers(self) -> dict[str, Any]:
        """The `config.json` that `from_transformers` and `transformers.DacModel` read."""
        return {
            "architectures": ["DacModel"],
            "model_type": "dac",
            "encoder_hidden_size": self.encoder_channels,
            "downsampling_ratios": list(self.encoder_strides),
            "decoder_hidden_size": self.decoder_channels,
            "upsampling_ratios": list(self.decoder_strides),
            "hidden_size": self.latent_dim,
            "n_codebooks": self.codebooks,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "sampling_rate": self.sample_rate,
            "hop_length": self.hop_length,
        }


def _required(values: Mapping[str, Any], key: str) -> Any:
    if key not in values:
        raise InvalidCheckpoint(f"codec config: {key} is missing")
    return values[key]


def _integer(values: Mapping[str, Any], key: str) -> int:
    value = _required(values, key)
    if not _is_positive_integer(value):
        raise InvalidCheckpoint(f"codec config: {key} is {value!r}, must be a positive integer")
    return int(value)


def _integers(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = _required(values, key)
    if not isinstance(value, list | tuple) or not all(map(_is_positive_integer, value)):
        raise InvalidCheckpoint(f"codec config: {key} is {value!r}, must list positive integers")
    return tuple(value)


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0

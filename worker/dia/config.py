"""Dia's dimensions, and which generation of its maths a checkpoint was trained for.

Reads both published `config.json` formats. Source: nari-labs/dia `config.py` at the April 2025
release and at 0626, and the configuration of `transformers`' port.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from worker.errors import InvalidCheckpoint


class Generation(str, Enum):
    """Checkpoints of the same shapes whose maths differ; nothing in the weights tells them apart.

    APRIL rotates cross-attention queries and keys and samples from the guided logits. JUNE does
    not rotate there, and uses the guided logits only to choose candidates.
    """

    APRIL = "april"
    JUNE = "0626"


@dataclass(frozen=True)
class EncoderConfig:
    """The text encoder: bidirectional, one vector for each byte."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    vocabulary: int
    max_positions: int  # bytes of text


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder over audio frames: grouped-query self-attention, cross-attention to the text."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    cross_heads: int
    cross_head_dim: int
    channels: int
    vocabulary: int  # of each channel
    max_positions: int  # frames, prompt and delay included


@dataclass(frozen=True)
class DiaConfig:
    """Everything about a Dia checkpoint but its weights."""

    generation: Generation
    encoder: EncoderConfig
    decoder: DecoderConfig
    delays: tuple[int, ...]  # frames, one for each channel
    eos_id: int = 1024
    pad_id: int = 1025
    bos_id: int = 1026
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        if len(self.delays) != self.decoder.channels or self.delays[0] != 0 or min(self.delays) < 0:
            raise InvalidCheckpoint(
                f"delay_pattern is {list(self.delays)}; valid is one delay >= 0 for each of the "
                f"{self.decoder.channels} channels, the first of them 0"
            )
        if self.decoder.query_heads % self.decoder.kv_heads:
            raise InvalidCheckpoint(
                f"{self.decoder.query_heads} query heads do not divide into "
                f"{self.decoder.kv_heads} key-value heads"
            )

    @property
    def max_delay(self) -> int:
        """Frames by which the last channel lags behind the first."""
        return max(self.delays)

    @classmethod
    def read(cls, path: Path, generation: Generation | None = None) -> DiaConfig:
        """Reads a `config.json`; see `parse`."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidCheckpoint(f"{path}: cannot be read: {error}") from error
        return cls.parse(content, generation, source=str(path))

    @classmethod
    def parse(
        cls,
        content: Mapping[str, Any],
        generation: Generation | None = None,
        source: str = "config.json",
    ) -> DiaConfig:
        """Dimensions from either published format.

        Args:
            content: the parsed JSON.
            generation: overrides the generation that the format stands for.
            source: named in error messages.

        Raises:
            InvalidCheckpoint: if the format is neither of the two, or a key is missing.
        """
        try:
            if "model" in content and "data" in content:
                return _parse_april(content, generation or Generation.APRIL)
            if content.get("model_type") == "dia":
                return _parse_june(content, generation or Generation.JUNE)
        except KeyError as error:
            raise InvalidCheckpoint(f"{source}: key {error} is missing") from error
        raise InvalidCheckpoint(
            f"{source}: not a Dia configuration: neither `model` and `data` (April 2025) nor "
            '`"model_type": "dia"` (0626)'
        )


def _parse_april(content: Mapping[str, Any], generation: Generation) -> DiaConfig:
    model, data = content["model"], content["data"]
    encoder, decoder = model["encoder"], model["decoder"]
    return DiaConfig(
        generation=generation,
        encoder=EncoderConfig(
            layers=encoder["n_layer"],
            hidden=encoder["n_embd"],
            intermediate=encoder["n_hidden"],
            heads=encoder["n_head"],
            head_dim=encoder["head_dim"],
            vocabulary=model["src_vocab_size"],
            max_positions=data["text_length"],
        ),
        decoder=DecoderConfig(
            layers=decoder["n_layer"],
            hidden=decoder["n_embd"],
            intermediate=decoder["n_hidden"],
            query_heads=decoder["gqa_query_heads"],
            kv_heads=decoder["kv_heads"],
            head_dim=decoder["gqa_head_dim"],
            cross_heads=decoder["cross_query_heads"],
            cross_head_dim=decoder["cross_head_dim"],
            channels=data["channels"],
            vocabulary=model["tgt_vocab_size"],
            max_positions=data["audio_length"],
        ),
        delays=tuple(data["delay_pattern"]),
        eos_id=data["audio_eos_value"],
        pad_id=data["audio_pad_value"],
        bos_id=data["audio_bos_value"],
        norm_eps=model["normalization_layer_epsilon"],
        rope_theta=float(model["rope_max_timescale"]),
    )


def _parse_june(content: Mapping[str, Any], generation: Generation) -> DiaConfig:
    encoder, decoder = content["encoder_config"], content["decoder_config"]
    if decoder["cross_num_key_value_heads"] != decoder["cross_num_attention_heads"]:
        raise InvalidCheckpoint("cross_num_key_value_heads differs from cross_num_attention_heads")
    return DiaConfig(
        generation=generation,
        encoder=EncoderConfig(
            layers=encoder["num_hidden_layers"],
            hidden=encoder["hidden_size"],
            intermediate=encoder["intermediate_size"],
            heads=encoder["num_attention_heads"],
            head_dim=encoder["head_dim"],
            vocabulary=encoder["vocab_size"],
            max_positions=encoder["max_position_embeddings"],
        ),
        decoder=DecoderConfig(
            layers=decoder["num_hidden_layers"],
            hidden=decoder["hidden_size"],
            intermediate=decoder["intermediate_size"],
            query_heads=decoder["num_attention_heads"],
            kv_heads=decoder["num_key_value_heads"],
            head_dim=decoder["head_dim"],
            cross_heads=decoder["cross_num_attention_heads"],
            cross_head_dim=decoder["cross_head_dim"],
            channels=decoder["num_channels"],
            vocabulary=decoder["vocab_size"],
            max_positions=decoder["max_position_embeddings"],
        ),
        delays=tuple(content["delay_pattern"]),
        eos_id=_special_id(content, "eos_token_id", 1024),
        pad_id=_special_id(content, "pad_token_id", 1025),
        bos_id=_special_id(content, "bos_token_id", 1026),
        norm_eps=decoder.get("norm_eps", 1e-5),
        rope_theta=float(_rope_theta(decoder)),
    )


def _special_id(content: Mapping[str, Any], key: str, default: int) -> int:
    # transformers moved the ids from the top into the decoder's section, and leaves null there.
    for section in (content, content["decoder_config"]):
        if section.get(key) is not None:
            return int(section[key])
    return default


def _rope_theta(decoder: Mapping[str, Any]) -> float:
    # transformers moved the base from the top of the section into `rope_parameters`.
    parameters = decoder.get("rope_parameters") or {}
    return decoder.get("rope_theta") or parameters.get("rope_theta") or 10_000.0


def to_transformers(config: DiaConfig) -> dict[str, Any]:
    """The 0626 `config.json` of these dimensions; `DiaConfig.parse` reads it back."""
    encoder, decoder = config.encoder, config.decoder
    shared = {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "hidden_act": "silu"}
    return {
        "architectures": ["DiaForConditionalGeneration"],
        "model_type": "dia",
        "is_encoder_decoder": True,
        "delay_pattern": list(config.delays),
        "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
        "norm_eps": config.norm_eps,
        "encoder_config": {
            "model_type": "dia_encoder",
            "num_hidden_layers": encoder.layers,
            "hidden_size": encoder.hidden,
            "intermediate_size": encoder.intermediate,
            "num_attention_heads": encoder.heads,
            "num_key_value_heads": encoder.heads,
            "head_dim": encoder.head_dim,
            "vocab_size": encoder.vocabulary,
            "max_position_embeddings": encoder.max_positions,
            **shared,
        },
        "decoder_config": {
            "model_type": "dia_decoder",
            "num_hidden_layers": decoder.layers,
            "hidden_size": decoder.hidden,
            "intermediate_size": decoder.intermediate,
            "num_attention_heads": decoder.query_heads,
            "num_key_value_heads": decoder.kv_heads,
            "head_dim": decoder.head_dim,
            "cross_num_attention_heads": decoder.cross_heads,
            "cross_num_key_value_heads": decoder.cross_heads,
            "cross_head_dim": decoder.cross_head_dim,
            "cross_hidden_size": encoder.hidden,
            "num_channels": decoder.channels,
            "vocab_size": decoder.vocabulary,
            "max_position_embeddings": decoder.max_positions,
            **shared,
        },
    }

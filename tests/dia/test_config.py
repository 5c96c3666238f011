from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.make_tiny import DIA as TINY
from tests.models import GOLDEN, NINE_CHANNELS
from worker.dia.config import DiaConfig, Generation, to_transformers
from worker.errors import InvalidCheckpoint

JUNE = json.loads((GOLDEN / "0626" / "config.json").read_text())
APRIL = json.loads((GOLDEN / "april" / "config.json").read_text())


def test_both_formats_give_the_same_dimensions_and_differ_in_the_generation() -> None:
    june, april = DiaConfig.parse(JUNE), DiaConfig.parse(APRIL)
    assert june.generation is Generation.JUNE
    assert april.generation is Generation.APRIL
    assert replace(april, generation=Generation.JUNE) == june


def test_every_dimension_is_read_from_its_own_key() -> None:
    config = DiaConfig.parse(JUNE)
    encoder, decoder = config.encoder, config.decoder
    assert (encoder.layers, encoder.hidden, encoder.intermediate) == (2, 48, 96)
    assert (encoder.heads, encoder.head_dim, encoder.max_positions) == (3, 16, 128)
    assert (decoder.layers, decoder.hidden, decoder.intermediate) == (3, 64, 128)
    assert (decoder.query_heads, decoder.kv_heads, decoder.head_dim) == (4, 2, 16)
    assert (decoder.cross_heads, decoder.cross_head_dim, decoder.channels) == (4, 16, 9)
    assert (encoder.vocabulary, decoder.vocabulary, decoder.max_positions) == (256, 1028, 256)
    assert (config.eos_id, config.pad_id, config.bos_id) == (1024, 1025, 1026)
    assert (config.norm_eps, config.rope_theta) == (1e-5, 10_000.0)
    assert (config.delays, config.max_delay) == ((0, 8, 9, 10, 11, 12, 13, 14, 15), 15)


@pytest.mark.parametrize("config", [NINE_CHANNELS, TINY], ids=["uneven", "dia-tiny"])
def test_a_written_configuration_is_read_back(config: DiaConfig) -> None:
    unusual = replace(config, norm_eps=2e-5, rope_theta=500.0, eos_id=1000, pad_id=1, bos_id=0)
    assert DiaConfig.parse(json.loads(json.dumps(to_transformers(unusual)))) == unusual


@pytest.mark.parametrize("content", [JUNE, APRIL], ids=["0626", "april"])
@pytest.mark.parametrize("generation", list(Generation))
def test_a_setting_overrides_the_generation_of_the_format(
    content: dict[str, Any], generation: Generation
) -> None:
    assert DiaConfig.parse(content, generation).generation is generation


@pytest.mark.parametrize("content", [{}, {"model_type": "bert"}, {"model": {}}, {"data": {}}])
def test_a_file_that_says_neither_generation_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"neither .*April 2025.* nor .*0626") as caught:
        DiaConfig.parse(content, Generation.JUNE, source="somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "section", "key"),
    [
        (JUNE, "encoder_config", "hidden_size"),
        (JUNE, "decoder_config", "cross_num_key_value_heads"),
        (JUNE, None, "delay_pattern"),
        (JUNE, None, "decoder_config"),
        (APRIL, "model", "tgt_vocab_size"),
        (APRIL, "data", "audio_eos_value"),
        (APRIL, "data", "delay_pattern"),
    ],
)
def test_a_missing_key_is_named(content: dict[str, Any], section: str | None, key: str) -> None:
    content = copy.deepcopy(content)
    del (content[section] if section else content)[key]
    with pytest.raises(InvalidCheckpoint, match=rf"a\.json: key '{key}' is missing"):
        DiaConfig.parse(content, source="a.json")


@pytest.mark.parametrize(
    "delays",
    [(0, 8), (1, 8, 9, 10, 11, 12, 13, 14, 15), (0, 8, 9, 10, 11, 12, 13, 14, -1), ()],
    ids=["too few", "first not 0", "negative", "none"],
)
def test_a_delay_pattern_that_does_not_fit_the_channels_is_refused(delays: tuple[int, ...]) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"delay_pattern is .* 9 channels"):
        replace(NINE_CHANNELS, delays=delays)


def test_query_heads_that_cannot_share_the_key_value_heads_are_refused() -> None:
    decoder = replace(NINE_CHANNELS.decoder, query_heads=5, kv_heads=2)
    with pytest.raises(InvalidCheckpoint, match="5 query heads"):
        replace(NINE_CHANNELS, decoder=decoder)


def test_grouped_cross_attention_which_dia_does_not_have_is_refused() -> None:
    content = copy.deepcopy(JUNE)
    content["decoder_config"]["cross_num_key_value_heads"] = 2
    with pytest.raises(InvalidCheckpoint, match="cross_num_key_value_heads"):
        DiaConfig.parse(content)


def test_special_ids_are_found_where_newer_transformers_keeps_them() -> None:
    content = copy.deepcopy(JUNE)
    ids = {"eos_token_id": 900, "pad_token_id": 0, "bos_token_id": 902}
    for key, value in ids.items():
        content[key] = None
        content["decoder_config"][key] = value
    config = DiaConfig.parse(content)
    assert (config.eos_id, config.pad_id, config.bos_id) == (900, 0, 902)


def test_the_rotary_base_is_found_where_newer_transformers_keeps_it() -> None:
    content = copy.deepcopy(JUNE)
    del content["decoder_config"]["rope_theta"]
    content["decoder_config"]["rope_parameters"] = {"rope_theta": 777.0, "rope_type": "default"}
    assert DiaConfig.parse(content).rope_theta == 777.0


@pytest.mark.parametrize("text", ["", "{", "no json"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: cannot be read"):
        DiaConfig.read(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"config\.json: cannot be read"):
        DiaConfig.read(tmp_path / "config.json")

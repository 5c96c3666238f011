"""The model that comes with the worker."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from builder.make_tiny import make_tiny
from worker.startup import is_trained


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_builds_are_the_same_to_the_byte(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)  # of which nothing must depend
    make_tiny(tmp_path / "again")
    assert files(tmp_path / "again") == files(tiny_model)


def test_a_build_is_a_configuration_weights_and_a_codec(tiny_model: Path) -> None:
    assert set(files(tiny_model)) == {
        "config.json",
        "model.safetensors",
        "codec/config.json",
        "codec/model.safetensors",
    }


def test_a_build_over_another_replaces_it(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    make_tiny(tmp_path)
    assert files(tmp_path) == files(tiny_model)


def test_it_says_of_itself_that_it_is_untrained(tiny_model: Path) -> None:
    assert json.loads((tiny_model / "config.json").read_text())["trained"] is False
    assert not is_trained(tiny_model / "config.json")


def test_a_model_that_says_nothing_of_it_counts_as_trained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert is_trained(tmp_path / "config.json")


def test_it_has_between_one_and_two_million_parameters(tiny_model: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors")
    assert 1e6 < sum(tensor.numel() for tensor in tensors.values()) < 2e6


def test_it_has_the_same_channels_and_positions_as_the_real_model(tiny_model: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    assert config["delay_pattern"] == [0, 8, 9, 10, 11, 12, 13, 14, 15]
    assert config["encoder_config"]["max_position_embeddings"] == 1024
    assert config["decoder_config"]["max_position_embeddings"] == 3072

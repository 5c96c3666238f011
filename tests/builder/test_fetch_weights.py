"""The folders that an image holds: what is in them, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from builder.convert import write_bfloat16
from builder.pins import Pin
from tests.builder.published import (
    DESCRIPT,
    JUNE,
    ON_THE_HUB,
    Small,
    names,
    run,
    saved,
    source_of,
)
from tests.builder.serving import Hub
from worker.codec.checkpoint import load_codec
from worker.config import load_settings
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig
from worker.errors import InvalidCheckpoint
from worker.tensors import open_checkpoint
from worker.weights import find_codec, find_dia

CPU = torch.device("cpu")
COMMIT = "a" * 40
TOKEN = "hf_notreal"


# What is made


def test_both_models_lie_where_a_worker_in_an_image_looks_for_them(
    hub: Hub, pins: dict[str, Pin], models: Path
) -> None:
    assert run(hub, models) == 0
    settings = load_settings({"DIA_MODEL_REPO_ID": JUNE, "HF_HUB_OFFLINE": "1"})
    nowhere = models / "nowhere"
    dia = find_dia(settings, cuda_available=True, root=models.parent, runpod_hub=nowhere)
    codec = find_codec(settings, dia, root=models.parent, runpod_hub=nowhere)
    assert (dia.weights, dia.origin) == (
        models / "Dia-1.6B-0626/model.safetensors",
        "baked into the image",
    )
    assert codec == models / "dac_44khz"
    assert names(models) == ["Dia-1.6B-0626", "dac_44khz"]
    assert names(dia.weights.parent) == ["SOURCE.json", "config.json", "model.safetensors"]
    assert names(codec) == ["SOURCE.json", "config.json", "model.safetensors"]


def test_everybody_may_read_what_was_made(hub: Hub, pins: dict[str, Pin], models: Path) -> None:
    assert run(hub, models) == 0
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in models.rglob("*"))


def test_the_weights_are_the_published_ones_rounded_to_bfloat16(
    hub: Hub, pins: dict[str, Pin], models: Path, tiny_model: Path
) -> None:
    assert run(hub, models, "dia") == 0
    folder = models / "Dia-1.6B-0626"
    config = DiaConfig.read(folder / "config.json")
    made, _ = load_dia(folder / "model.safetensors", config, CPU, torch.float32)
    published, _ = load_dia(tiny_model / "model.safetensors", config, CPU, torch.bfloat16)
    theirs = dict(published.named_parameters())
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, theirs[name].float()), name
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_rounding_keeps_names_and_shapes_of_every_tensor(tmp_path: Path) -> None:
    tensors = {"b.c": torch.randn(3, 5), "a": torch.randn(7), "d": torch.tensor(1 / 3)}
    saved(tensors, tmp_path / "in.bin")
    write_bfloat16(tmp_path / "in.bin", tmp_path / "out.safetensors")
    made = open_checkpoint(tmp_path / "out.safetensors")
    assert set(made) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(made.load(name), tensor.to(torch.bfloat16))


def test_what_holds_no_numbers_is_not_rounded(tmp_path: Path) -> None:
    saved({"step": torch.tensor([3])}, tmp_path / "in.bin")
    with pytest.raises(InvalidCheckpoint, match=r"step holds torch\.int64"):
        write_bfloat16(tmp_path / "in.bin", tmp_path / "out.safetensors")


def test_the_codec_is_descripts_without_its_pickle(
    hub: Hub, pins: dict[str, Pin], models: Path, tiny_model: Path
) -> None:
    assert run(hub, models, "codec") == 0
    made, theirs = load_codec(models / "dac_44khz", CPU), load_codec(tiny_model / "codec", CPU)
    assert made.config == theirs.config
    for ours, tensor in zip(made.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(ours, tensor)
    assert not list(models.rglob("*.pth"))


def test_the_codec_can_come_from_the_hub_as_it_is(
    hub: Hub, pins: dict[str, Pin], models: Path, small: Small
) -> None:
    assert run(hub, models, "codec", "--codec", ON_THE_HUB) == 0
    for name, content in small.codec.items():
        assert (models / "dac_44khz" / name).read_bytes() == content


# What is said of it


def test_the_source_says_what_came_from_where_and_what_became_of_it(
    hub: Hub, pins: dict[str, Pin], models: Path
) -> None:
    assert run(hub, models, "dia") == 0
    source = source_of(models / "Dia-1.6B-0626")
    pin = pins[JUNE]
    assert (source["repository"], source["revision"]) == (JUNE, pin.revision)
    assert source["pinned"] is True
    assert source["downloaded"] == {
        file.name: {"size": file.size, "sha256": file.sha256} for file in pin.files
    }
    assert set(source["holds"]) == {"config.json", "model.safetensors"}


def test_two_builds_are_the_same_to_the_byte(
    hub: Hub, pins: dict[str, Pin], models: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert run(hub, models) == run(hub, again) == 0
    for path in sorted(models.rglob("*.*")):
        if path.is_file():
            assert (again / path.relative_to(models)).read_bytes() == path.read_bytes()


def test_what_is_there_is_left_alone(hub: Hub, pins: dict[str, Pin], models: Path) -> None:
    assert run(hub, models) == 0
    asked = len(hub.asked)
    assert run(hub, models) == 0
    assert len(hub.asked) == asked


@pytest.mark.parametrize("harm", ["weights", "source", "pin"])
def test_what_was_changed_or_is_another_is_made_again(
    hub: Hub, pins: dict[str, Pin], models: Path, small: Small, harm: str
) -> None:
    if harm == "pin":
        assert run(hub, models, "codec", "--codec", ON_THE_HUB) == 0
    assert run(hub, models, "codec") == 0
    folder = models / "dac_44khz"
    whole = (folder / "model.safetensors").read_bytes()
    if harm != "pin":
        file = folder / ("model.safetensors" if harm == "weights" else "SOURCE.json")
        file.write_bytes(b"[]")
    assert run(hub, models, "codec") == 0
    assert (folder / "model.safetensors").read_bytes() == whole
    assert source_of(folder)["repository"] == DESCRIPT


def test_downloads_that_are_kept_serve_the_next_build(
    hub: Hub, pins: dict[str, Pin], models: Path, tmp_path: Path
) -> None:
    kept = ["--downloads", str(tmp_path / "downloads")]
    assert run(hub, models, *kept) == 0
    asked = len(hub.asked)
    assert run(hub, tmp_path / "again", *kept) == 0
    assert len(hub.asked) == asked

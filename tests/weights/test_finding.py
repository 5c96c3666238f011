"""Finding the weights: which place wins, and what is said when none has them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.weights.house import (
    BF16,
    COMMIT,
    DIA,
    OTHER_COMMIT,
    SHARDS,
    House,
    fill,
    look_in,
    missed,
)
from worker.errors import InvalidConfig
from worker.settings import REPOSITORY_ROOT
from worker.weights import ModelFiles

# The places of the Dia model


def test_a_model_baked_into_the_image_is_found(house: House) -> None:
    folder = house.baked(DIA, "config.json", BF16)
    assert house.dia() == ModelFiles(
        DIA, folder / "config.json", folder / BF16, "baked into the image", embedded=False
    )


def test_runpods_cached_model_is_found_through_its_ref(house: House) -> None:
    folder = house.cached(house.runpod_hub, DIA, "config.json", BF16)
    fill(folder.parent / OTHER_COMMIT, "config.json", BF16)
    files = house.dia(RUNPOD_POD_ID="abc")
    assert (files.weights, files.origin) == (folder / BF16, "RunPod's cached models")


def test_a_model_in_the_hubs_cache_is_found_without_network(house: House) -> None:
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16)
    files = house.dia()
    assert (files.config, files.origin) == (folder / "config.json", "the hub's cache")


def test_the_places_are_looked_at_in_order(house: House) -> None:
    in_hub_cache = house.cached(house.hub_cache, DIA, "config.json", BF16)
    assert house.dia().weights.parent == in_hub_cache
    on_runpod = house.cached(house.runpod_hub, DIA, "config.json", BF16)
    assert house.dia().weights.parent == on_runpod
    baked = house.baked(DIA, "config.json", BF16)
    assert house.dia().weights.parent == baked
    chosen = fill(house.root.parent / "chosen", "config.json", "model.safetensors")
    assert house.dia(DIA_MODEL=str(chosen)).weights.parent == chosen


def test_a_revision_is_taken_as_a_branch_or_as_a_commit(house: House) -> None:
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16, ref="v2")
    assert house.dia(DIA_MODEL_REVISION="v2").weights.parent == folder
    assert house.dia(DIA_MODEL_REVISION=COMMIT).weights.parent == folder
    assert OTHER_COMMIT in missed(partial(house.dia, DIA_MODEL_REVISION=OTHER_COMMIT))


def test_a_place_without_config_json_is_passed_over(house: House) -> None:
    house.baked(DIA, BF16)
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16)
    assert house.dia().weights.parent == folder


def test_a_place_that_may_not_be_read_is_passed_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert "Permission denied" in missed(look_in(house))


# Which file


def test_of_the_default_repository_only_the_configured_file_is_taken(house: House) -> None:
    folder = house.baked(DIA, "config.json", "model.safetensors", "dia-v0_1.safetensors", BF16)
    assert house.dia().weights.name == BF16
    (folder / BF16).unlink()
    assert f"no {BF16}" in missed(look_in(house))
    chosen = house.dia(DIA_MODEL_WEIGHTS_FILENAME="dia-v0_1.safetensors")
    assert chosen.weights.name == "dia-v0_1.safetensors"


def test_of_another_model_the_usual_names_are_tried_best_first(house: House) -> None:
    usual = [
        "model.safetensors.index.json",
        "model.safetensors",
        "dia-v0_1_bf16.safetensors",
        "dia-v0_1.safetensors",
        "dia-v0_1.pth",
        "pytorch_model.bin",
    ]
    folder = house.baked("nari-labs/Dia-1.6B-0626", "config.json", *usual, *SHARDS)
    for name in usual:
        by_choice = house.dia(DIA_MODEL="nari-labs/Dia-1.6B-0626")
        by_repository = house.dia(DIA_MODEL_REPO_ID="nari-labs/Dia-1.6B-0626")
        assert by_choice.weights == by_repository.weights == folder / name
        (folder / name).unlink()
    message = missed(look_in(house, DIA_MODEL="nari-labs/Dia-1.6B-0626"))
    assert all(name in message for name in usual)


def test_shards_are_taken_only_when_all_of_them_are_there(house: House) -> None:
    names = ["config.json", "model.safetensors.index.json", SHARDS[0]]
    folder = house.baked("org/sharded", *names)
    message = missed(look_in(house, DIA_MODEL="org/sharded"))
    assert f"no {SHARDS[1]}" in message
    fill(folder, SHARDS[1])
    assert house.dia(DIA_MODEL="org/sharded").weights.name == "model.safetensors.index.json"


def test_a_damaged_index_is_reported(house: House) -> None:
    folder = house.baked("org/sharded", "config.json", "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "not an index of shards" in missed(look_in(house, DIA_MODEL="org/sharded"))


# DIA_MODEL


def test_dia_model_may_be_a_folder_a_file_or_a_relative_path(house: House) -> None:
    here = fill(Path.cwd() / "mine", "config.json", "model.safetensors", "dia-v0_1.pth")
    in_root = fill(house.root / "theirs", "config.json", "dia-v0_1.pth")
    assert house.dia(DIA_MODEL=str(here)).weights == here / "model.safetensors"
    assert house.dia(DIA_MODEL=str(here / "dia-v0_1.pth")).weights == here / "dia-v0_1.pth"
    assert house.dia(DIA_MODEL="./mine").weights == here / "model.safetensors"
    files = house.dia(DIA_MODEL="theirs")
    assert files.weights == in_root / "dia-v0_1.pth"
    assert (files.name, files.origin, files.embedded) == ("theirs", "the path in DIA_MODEL", False)


def test_dia_model_may_name_the_configured_file_of_a_folder(house: House) -> None:
    folder = fill(Path.cwd() / "mine", "config.json", "model.safetensors", "other.pth")
    files = house.dia(DIA_MODEL="mine", DIA_MODEL_WEIGHTS_FILENAME="other.pth")
    assert files.weights == folder / "other.pth"


def test_a_chosen_folder_without_weights_does_not_fall_through(house: House) -> None:
    house.baked(DIA, "config.json", BF16)
    fill(Path.cwd() / "mine", "model.safetensors")
    message = missed(look_in(house, DIA_MODEL="mine"))
    assert message.startswith("DIA_MODEL: ")
    assert "mine: no config.json" in message


def test_a_chosen_file_that_holds_no_weights_is_refused(house: House) -> None:
    fill(Path.cwd(), "notes.txt", "config.json")
    with pytest.raises(InvalidConfig, match=r"notes\.txt.* a weights file ends in \.safetensors"):
        house.dia(DIA_MODEL="notes.txt")


@pytest.mark.parametrize("value", ["dia-big", "/no/such/folder", "./nothing", "a/b/c"])
def test_dia_model_that_is_neither_path_nor_repository_is_refused(house: House, value: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        house.dia(DIA_MODEL=value)
    assert caught.value.message == (
        f"DIA_MODEL (model.source): {value!r} is not allowed; it must be dia-tiny, an existing "
        "folder or weights file, or a repository, as org/name"
    )


# The embedded model


def test_without_a_gpu_and_with_nothing_chosen_you_get_the_embedded_model(house: House) -> None:
    folder = house.embedded()
    house.baked(DIA, "config.json", BF16)
    files = house.dia(cuda=False)
    assert files == ModelFiles(
        "dia-tiny",
        folder / "config.json",
        folder / "model.safetensors",
        "embedded in the worker",
        embedded=True,
    )
    assert house.codec(files) == folder / "codec"


@pytest.mark.parametrize(
    "environ",
    [{"RUNPOD_POD_ID": "a"}, {"RUNPOD_ENDPOINT_ID": "a"}, {"RUNPOD_WEBHOOK_GET_JOB": "http://a"}],
)
def test_on_runpod_the_embedded_model_never_stands_in(
    house: House, environ: dict[str, str]
) -> None:
    house.embedded()
    assert DIA in missed(partial(house.dia, cuda=False, **environ))
    assert DIA in missed(partial(house.dia, cuda=True, **environ))


@pytest.mark.parametrize(
    "environ", [{"DIA_MODEL": "org/model"}, {"DIA_MODEL_REPO_ID": "org/model"}]
)
def test_a_choice_is_never_answered_with_the_embedded_model(
    house: House, environ: dict[str, str]
) -> None:
    house.embedded()
    assert "org/model" in missed(partial(house.dia, cuda=False, **environ))


def test_with_a_gpu_the_embedded_model_never_stands_in(house: House) -> None:
    house.embedded()
    assert DIA in missed(look_in(house))


def test_the_embedded_model_can_be_chosen_anywhere(house: House) -> None:
    house.embedded()
    assert house.dia(DIA_MODEL="dia-tiny", RUNPOD_POD_ID="a").embedded
    assert house.dia(DIA_MODEL="dia-tiny", cuda=False).embedded


def test_a_missing_embedded_model_is_answered_with_make_model(house: House) -> None:
    assert "run `make model`" in missed(partial(house.dia, cuda=False))
    fill(house.root / "models/dia-tiny", "config.json", "model.safetensors")
    files = house.dia(cuda=False)
    house.baked("descript/dac_44khz", "config.json", "model.safetensors")
    assert "run `make model`" in missed(partial(house.codec, files))


# Nothing found


def test_on_runpod_nothing_found_is_one_line_with_every_place_and_the_mending(
    house: House,
) -> None:
    message = missed(partial(house.dia, RUNPOD_POD_ID="abc"))
    repository = "models--ttj--dia-1.6b-safetensors"
    assert message == (
        "ttj/dia-1.6b-safetensors lies in none of the places where it may: "
        f"(1) baked into the image: {house.root}/models/dia-1.6b-safetensors: no such folder; "
        f"(2) RunPod's cached models: {house.runpod_hub}/{repository}: no such folder; "
        f"(3) the hub's cache: {house.hub_cache}/{repository}: no such folder; "
        "(4) a download from the hub: not tried, because HF_HUB_OFFLINE is set. "
        "To mend it, put them into the image under models/, choose the repository as the "
        "endpoint's cached model, or set DIA_MODEL to a folder that holds them"
    )


# The codec


def test_the_places_of_the_codec_are_looked_at_in_order(house: House) -> None:
    repository, names = "descript/dac_44khz", ("config.json", "model.safetensors")
    dia = house.baked(DIA, "config.json", BF16)
    beside = house.dia()
    expected = [
        house.cached(house.hub_cache, repository),
        house.cached(house.runpod_hub, repository),
        house.root / "models/dac_44khz",
        dia / "dac",
        dia / "codec",
    ]
    for folder in expected:
        fill(folder, *names)
        assert house.codec(beside) == folder
    chosen = fill(Path.cwd() / "mine", *names)
    assert house.codec(beside, DAC_MODEL="./mine") == chosen


def test_a_chosen_codec_repository_wins_over_the_codec_beside_the_weights(house: House) -> None:
    embedded = house.embedded()
    mine = house.baked("someone/dac", "config.json", "model.safetensors")
    beside = house.dia(DIA_MODEL="dia-tiny")
    assert house.codec(beside) == embedded / "codec"
    assert house.codec(beside, DAC_MODEL="someone/dac") == mine


def test_a_chosen_codec_folder_does_not_fall_through(house: House) -> None:
    house.baked("descript/dac_44khz", "config.json", "model.safetensors")
    with pytest.raises(InvalidConfig, match=r"DAC_MODEL \(codec\.path\): '/no/such/dac'"):
        house.codec(DAC_MODEL="/no/such/dac")
    folder = fill(Path.cwd() / "mine", "config.json")
    message = missed(partial(house.codec, DAC_MODEL="./mine"))
    assert f"{folder}: no model.safetensors" in message


def test_a_codec_that_is_nowhere_is_answered_with_every_place_and_the_mending(
    house: House,
) -> None:
    message = missed(partial(house.codec, RUNPOD_POD_ID="abc"))
    places = ["x/codec", "x/dac", "models/dac_44khz", "RunPod's cached", "hub's cache", "download"]
    positions = [message.index(place) for place in places]
    assert positions == sorted(positions)
    assert message.endswith("or set DAC_MODEL to a folder that holds it")


def test_finding_weights_does_not_import_torch() -> None:
    program = "import sys, worker.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY_ROOT)

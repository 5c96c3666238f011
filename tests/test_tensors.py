"""Checkpoint containers: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from worker.errors import InvalidCheckpoint
from worker.tensors import FINGERPRINT_SAMPLE, open_checkpoint, uninitialised

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


class Intruder:
    """What a hostile pickle holds: unpickling it calls a function."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def written(path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(WEIGHTS, path, metadata={"made": "here"})
    else:
        torch.save(WEIGHTS, path)
    return path


def sharded(folder: Path) -> Path:
    save_file({"a": WEIGHTS["a"]}, folder / "1.safetensors")
    save_file({"b": WEIGHTS["b"]}, folder / "2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    return index


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.pt", "m.bin"])
def test_every_kind_of_file_gives_its_tensors(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(written(tmp_path / name))
    assert set(checkpoint) == {"a", "b"}
    assert "a" in checkpoint
    assert "c" not in checkpoint
    for key, tensor in WEIGHTS.items():
        assert torch.equal(checkpoint.load(key), tensor)
        assert checkpoint.load(key).dtype == tensor.dtype


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded(tmp_path))
    assert set(checkpoint) == {"a", "b"}
    assert torch.equal(checkpoint.load("b"), WEIGHTS["b"])


def test_the_container_s_own_words_are_kept(tmp_path: Path) -> None:
    assert open_checkpoint(written(tmp_path / "m.safetensors")).metadata == {"made": "here"}
    torch.save({"state_dict": WEIGHTS, "metadata": {"kwargs": {"n": 9}}}, tmp_path / "m.pth")
    checkpoint = open_checkpoint(tmp_path / "m.pth")
    assert checkpoint.metadata == {"kwargs": {"n": 9}}
    assert set(checkpoint) == {"a", "b"}


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    torch.save({"a": torch.zeros(1), "b": Intruder(marker)}, tmp_path / "m.pth")
    with pytest.raises(InvalidCheckpoint, match=r"m\.pth: cannot be read"):
        open_checkpoint(tmp_path / "m.pth")
    assert not marker.exists()
    torch.load(tmp_path / "m.pth", weights_only=False)
    assert marker.exists()  # so the file was dangerous


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.index.json"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=f"{name}: no such file"):
        open_checkpoint(tmp_path / name)


def test_a_kind_of_file_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidCheckpoint, match=r"not one of \.safetensors.*\.bin"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_a_download_that_broke_off_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = written(tmp_path / name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}']
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(InvalidCheckpoint, match="cannot be read"):
        open_checkpoint(index)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"shards missing: 2\.safetensors"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "content", [[1, 2], torch.zeros(3), {"epoch": 3}, {"state_dict": [1]}, {"a": [torch.zeros(1)]}]
)
def test_a_pickle_of_something_else_than_named_tensors_is_refused(
    tmp_path: Path, content: Any
) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(InvalidCheckpoint, match=r"m\.pth"):
        open_checkpoint(tmp_path / "m.pth")


def fingerprint(tensors: dict[str, torch.Tensor], path: Path) -> str:
    save_file(tensors, path)
    return open_checkpoint(path).fingerprint()


def test_the_fingerprint_changes_with_name_shape_type_and_value(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.view(2, 3)},
        {"a": base.double()},
        {"a": base + torch.tensor([0, 0, 0, 0, 0, 1e-6])},
        {"a": base, "b": base.clone()},
    ]
    prints = [
        fingerprint(tensors, tmp_path / f"{i}.safetensors") for i, tensors in enumerate(variants)
    ]
    assert len(set(prints)) == len(variants)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_the_fingerprint_is_the_same_for_the_same_tensors_in_any_container(tmp_path: Path) -> None:
    paths = [written(tmp_path / name) for name in ("m.safetensors", "m.pth", "m.bin")]
    paths.append(sharded(tmp_path))
    assert len({open_checkpoint(path).fingerprint() for path in paths}) == 1


def test_the_fingerprint_reads_the_beginning_of_each_tensor(tmp_path: Path) -> None:
    first = torch.zeros(2 * FINGERPRINT_SAMPLE)
    second = first.clone()
    second[-1] = 1
    third = first.clone()
    third[FINGERPRINT_SAMPLE - 1] = 1
    prints = [
        fingerprint({"a": tensor}, tmp_path / f"{i}.safetensors")
        for i, tensor in enumerate((first, second, third))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_modules_can_be_built_in_another_type_without_drawing_numbers() -> None:
    before = torch.get_rng_state()
    with uninitialised(torch.device("cpu"), torch.bfloat16):
        module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_the_default_type_comes_back_after_a_failure() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        uninitialised(torch.device("cpu"), torch.float16),
    ):
        _ = 1 / 0
    assert torch.get_default_dtype() == torch.float32

"""The parity check: it passes on the reference's vectors, and can fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import CPU, GOLDEN, golden
from worker.dia.config import Generation, to_transformers
from worker.errors import InvalidCheckpoint, InvalidInput
from worker.parity import LOGIT_TOLERANCE, CaseResult, check_folder

both_generations = pytest.mark.parametrize("generation", list(Generation))

Change = Callable[[dict[str, Tensor]], None]


def copied(generation: Generation, folder: Path, *cases: str) -> Path:
    """A folder of vectors of its own, with fewer cases."""
    copy = Path(shutil.copytree(GOLDEN / generation.value, folder / generation.value))
    content = json.loads((copy / "cases.json").read_text())
    content["cases"] = [case for case in content["cases"] if case["name"] in cases]
    (copy / "cases.json").write_text(json.dumps(content))
    return copy


def change(file: Path, how: Change) -> None:
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def only_result(folder: Path) -> CaseResult:
    (result,) = check_folder(folder, CPU)
    return result


@both_generations
def test_every_reference_case_gives_its_codes_logits_and_encoder_output(
    generation: Generation,
) -> None:
    results = {result.case: result for result in check_folder(GOLDEN / generation.value, CPU)}
    assert set(results) == {"plain", "prompted", "batch", "eos"}
    for result in results.values():
        assert result.codes_equal, result
        assert result.encoder_error < 1e-5, result
        assert result.logit_error < 1e-5, result
        assert result.passed
        assert result.folder == generation.value
    frames = {case: result.frames for case, result in results.items()}
    ended = 22 if generation is Generation.APRIL else 23
    assert frames == {"plain": 80, "prompted": 75, "batch": 75 + 91, "eos": ended}


@pytest.mark.parametrize(
    ("generation", "name"),
    [
        (Generation.JUNE, "encoder.layers.1.self_attention.k_proj.weight"),
        (Generation.APRIL, "encoder.layers.0.mlp.wi_fused.weight"),
        (Generation.JUNE, "decoder.layers.0.self_attention.v_proj.weight"),
        (Generation.JUNE, "decoder.layers.2.cross_attention.q_proj.weight"),
        (Generation.APRIL, "decoder.layers.2.cross_attention.q_proj.weight"),
        (Generation.APRIL, "decoder.layers.1.pre_ca_norm.weight"),
        (Generation.JUNE, "decoder.embeddings.8.weight"),
        (Generation.APRIL, "decoder.logits_dense.weight"),
    ],
)
def test_a_changed_weight_fails(generation: Generation, name: str, tmp_path: Path) -> None:
    folder = copied(generation, tmp_path, "plain")

    def scale(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name] * 1.25

    change(folder / "native.safetensors", scale)
    result = only_result(folder)
    assert not result.passed
    assert result.logit_error > 10 * LOGIT_TOLERANCE
    assert (result.encoder_error > LOGIT_TOLERANCE) is name.startswith("encoder.")


@both_generations
def test_one_changed_code_fails(generation: Generation, tmp_path: Path) -> None:
    folder = copied(generation, tmp_path, "plain")

    def turn(tensors: dict[str, Tensor]) -> None:
        tensors["plain.codes.0"][40, 3] += 1

    change(folder / "expected.safetensors", turn)
    result = only_result(folder)
    assert not result.codes_equal
    assert not result.passed
    assert result.logit_error < LOGIT_TOLERANCE


@both_generations
def test_one_frame_too_many_fails(generation: Generation, tmp_path: Path) -> None:
    folder = copied(generation, tmp_path, "plain")

    def shorten(tensors: dict[str, Tensor]) -> None:
        tensors["plain.codes.0"] = tensors["plain.codes.0"][:-1].clone()

    change(folder / "expected.safetensors", shorten)
    assert not only_result(folder).passed


@both_generations
def test_a_prompt_that_is_heard_differently_fails(generation: Generation, tmp_path: Path) -> None:
    folder = copied(generation, tmp_path, "prompted")

    def turn(tensors: dict[str, Tensor]) -> None:
        tensors["prompt_a"][0, 0] = (tensors["prompt_a"][0, 0] + 1) % 1024

    change(folder / "expected.safetensors", turn)
    assert not only_result(folder).passed


@both_generations
def test_the_other_generation_s_maths_runs_and_fails(
    generation: Generation, tmp_path: Path
) -> None:
    folder = copied(generation, tmp_path, "plain")
    other = Generation.JUNE if generation is Generation.APRIL else Generation.APRIL
    content = to_transformers(golden(generation).config)
    if other is Generation.APRIL:
        content = json.loads((GOLDEN / "april" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content))
    result = only_result(folder)
    assert not result.passed
    assert result.encoder_error < LOGIT_TOLERANCE  # the encoder is the same in both


def test_half_precision_is_measured_and_not_passed(tmp_path: Path) -> None:
    folder = copied(Generation.JUNE, tmp_path, "plain")
    (result,) = check_folder(folder, CPU, torch.bfloat16)
    assert LOGIT_TOLERANCE < result.encoder_error < 0.05
    assert result.logit_error > LOGIT_TOLERANCE
    assert not result.passed


@pytest.mark.parametrize(
    "name", ["config.json", "native.safetensors", "cases.json", "expected.safetensors"]
)
def test_a_folder_that_lacks_a_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = copied(Generation.JUNE, tmp_path, "plain")
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=f"no folder of reference vectors: {name} is missing"):
        list(check_folder(folder, CPU))


def test_weights_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    folder = copied(Generation.JUNE, tmp_path, "plain")
    content = json.loads((folder / "config.json").read_text())
    content["decoder_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(InvalidCheckpoint, match=r"unexpected: decoder\.layers\.2"):
        list(check_folder(folder, CPU))


def test_a_special_column_of_one_case_does_not_reach_the_next(tmp_path: Path) -> None:
    folder = copied(Generation.APRIL, tmp_path, "plain", "eos")
    content = json.loads((folder / "cases.json").read_text())
    content["cases"].reverse()
    (folder / "cases.json").write_text(json.dumps(content))
    results = list(check_folder(folder, CPU))
    assert [result.case for result in results] == ["eos", "plain"]
    assert all(result.passed for result in results)


def test_vectors_that_are_damaged_are_refused_by_name(tmp_path: Path) -> None:
    folder = copied(Generation.JUNE, tmp_path, "plain")
    vectors = folder / "expected.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:1000])
    with pytest.raises(InvalidCheckpoint, match=r"expected\.safetensors: cannot be read"):
        only_result(folder)


def test_a_case_without_its_vectors_is_refused_by_name(tmp_path: Path) -> None:
    folder = copied(Generation.JUNE, tmp_path, "plain")
    change(folder / "expected.safetensors", lambda tensors: tensors.__delitem__("plain.codes.0"))
    with pytest.raises(InvalidInput, match=r"no folder of reference vectors.*plain\.codes\.0"):
        only_result(folder)

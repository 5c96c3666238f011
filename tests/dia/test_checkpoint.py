"""Reading and writing Dia's weights in both layouts, at small and at full size."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.published import DIA as FULL
from tests.models import CPU, NINE_CHANNELS, random_model
from worker.dia import checkpoint as dia_checkpoint
from worker.dia.checkpoint import export_dia, load_dia
from worker.dia.layouts import Layout, pieces_of
from worker.dia.model import DiaModel
from worker.errors import InvalidCheckpoint
from worker.tensors import Checkpoint

FULL_PARAMETERS = 1_611_160_576

both_layouts = pytest.mark.parametrize("layout", list(Layout))


@pytest.fixture(scope="module")
def model() -> DiaModel:
    return random_model(NINE_CHANNELS, seed=5)


def load(path: Path, dtype: torch.dtype = torch.float32) -> DiaModel:
    return load_dia(path, NINE_CHANNELS, CPU, dtype)[0]


def assert_same_weights(have: DiaModel, want: DiaModel) -> None:
    wanted = dict(want.named_parameters())
    assert {name for name, _ in have.named_parameters()} == set(wanted)
    for name, parameter in have.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


@both_layouts
def test_an_exported_model_is_loaded_back_bit_for_bit(
    model: DiaModel, layout: Layout, tmp_path: Path
) -> None:
    save_file(export_dia(model, layout), tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert_same_weights(loaded, model)
    assert torch.equal(loaded.unconditional_cross, model.unconditional_cross)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@both_layouts
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_a_torch_pickle_is_loaded(
    model: DiaModel, layout: Layout, suffix: str, tmp_path: Path
) -> None:
    torch.save(export_dia(model, layout), tmp_path / f"model{suffix}")
    assert_same_weights(load(tmp_path / f"model{suffix}"), model)


@both_layouts
def test_shards_are_loaded_by_their_index(model: DiaModel, layout: Layout, tmp_path: Path) -> None:
    tensors = export_dia(model, layout)
    shards: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (name, tensor) in enumerate(tensors.items()):
        shards["ab"[i % 2] + ".safetensors"][name] = tensor
    for file, content in shards.items():
        save_file(content, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    where = {name: file for file, content in shards.items() for name in content}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert_same_weights(load(index), model)


def test_both_layouts_of_the_same_model_are_the_same_model(model: DiaModel, tmp_path: Path) -> None:
    for layout in Layout:
        save_file(export_dia(model, layout), tmp_path / f"{layout.value}.safetensors")
    native, transformers = (load(tmp_path / f"{layout.value}.safetensors") for layout in Layout)
    assert_same_weights(native, transformers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_become_the_type_asked_for(
    model: DiaModel, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_file(export_dia(model, Layout.NATIVE), tmp_path / "model.safetensors")
    loaded = dict(load(tmp_path / "model.safetensors", dtype).named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded[name], parameter.to(dtype))


def test_a_bfloat16_file_serves_a_float32_model(model: DiaModel, tmp_path: Path) -> None:
    tensors = {name: t.bfloat16() for name, t in export_dia(model, Layout.NATIVE).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = dict(load(tmp_path / "model.safetensors").named_parameters())
    for name, parameter in model.named_parameters():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], parameter.bfloat16().float())


def test_every_fault_is_named_in_one_message(model: DiaModel, tmp_path: Path) -> None:
    tensors = export_dia(model, Layout.NATIVE)
    del tensors["decoder.norm.weight"]
    tensors["decoder.extra.weight"] = torch.zeros(3)
    tensors["encoder.norm.weight"] = torch.zeros(5)
    tensors["decoder.embeddings.8.weight"] = torch.zeros(1028, 31)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint) as caught:
        load(tmp_path / "model.safetensors")
    message = str(caught.value)
    assert "1 missing: decoder.norm.weight" in message
    assert "1 unexpected: decoder.extra.weight" in message
    assert "2 of the wrong shape: encoder.norm.weight (is [5], must be [24])" in message
    assert "decoder.embeddings.8.weight (is [1028, 31], must be [1028, 32])" in message
    assert "model.safetensors" in message


def test_a_checkpoint_of_another_size_gives_a_short_message(
    model: DiaModel, tmp_path: Path
) -> None:
    save_file(export_dia(model, Layout.TRANSFORMERS), tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"missing: .* more; .* wrong shape") as caught:
        load_dia(tmp_path / "model.safetensors", FULL, CPU, torch.float32)
    assert len(str(caught.value)) < 2000


def test_a_kernel_laid_out_as_in_the_other_layout_is_refused(
    model: DiaModel, tmp_path: Path
) -> None:
    tensors = export_dia(model, Layout.TRANSFORMERS)
    tensors["logits_dense.weight"] = tensors["logits_dense.weight"].T.contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"logits_dense\.weight \(is \[32, 9252\]"):
        load(tmp_path / "model.safetensors")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    save_file({"bert.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidCheckpoint, match=r"neither .*native.* nor .*transformers"):
        load(tmp_path / "model.safetensors")


@both_layouts
def test_the_fingerprint_tells_models_apart(layout: Layout, tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        path = tmp_path / f"{seed}.safetensors"
        save_file(export_dia(random_model(NINE_CHANNELS, seed), layout), path)
        for _ in range(2):
            prints.add(load_dia(path, NINE_CHANNELS, CPU, torch.float32)[1])
    assert len(prints) == 2


def test_loading_holds_no_more_than_two_tensors_of_the_file(
    model: DiaModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tensors, alive, most = export_dia(model, Layout.NATIVE), 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def read(name: str) -> Tensor:
        nonlocal alive, most
        tensor = tensors[name].clone()
        weakref.finalize(tensor, gone)
        alive += 1
        most = max(most, alive)
        return tensor

    opened = Checkpoint({name: partial(read, name) for name in tensors}, {})
    monkeypatch.setattr(dia_checkpoint, "open_checkpoint", lambda path: opened)
    assert_same_weights(load(tmp_path / "any"), model)
    assert 1 <= most <= 2  # the one before goes when the next has come


# --- full size, on the meta device ---


@pytest.fixture(scope="module")
def full() -> DiaModel:
    with torch.device("meta"):
        return DiaModel(FULL)


def test_the_full_model_has_the_published_number_of_parameters(full: DiaModel) -> None:
    assert sum(parameter.numel() for parameter in full.parameters()) == FULL_PARAMETERS


@both_layouts
def test_the_tensors_of_a_full_checkpoint_fill_every_row_once(
    full: DiaModel, layout: Layout
) -> None:
    taken: dict[str, list[tuple[int, int]]] = {}
    elements = 0
    for piece in pieces_of(FULL, layout):
        taken.setdefault(piece.parameter, []).append((piece.first_row, piece.rows))
        elements += math.prod(piece.shape)
    assert elements == FULL_PARAMETERS
    parameters = dict(full.named_parameters())
    assert set(taken) == set(parameters)
    for name, blocks in taken.items():
        reached = 0
        for first, rows in sorted(blocks):
            assert first == reached, name
            reached += rows
        assert reached == parameters[name].shape[0], name


def documented_native() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "encoder.embedding.weight", (256, 1024)
    yield "encoder.norm.weight", (1024,)
    for i in range(12):
        at = f"encoder.layers.{i}"
        yield f"{at}.pre_sa_norm.weight", (1024,)
        yield f"{at}.post_sa_norm.weight", (1024,)
        for name in "qkv":
            yield f"{at}.self_attention.{name}_proj.weight", (1024, 16, 128)
        yield f"{at}.self_attention.o_proj.weight", (16, 128, 1024)
        yield f"{at}.mlp.wi_fused.weight", (1024, 2, 4096)
        yield f"{at}.mlp.wo.weight", (4096, 1024)
    for channel in range(9):
        yield f"decoder.embeddings.{channel}.weight", (1028, 2048)
    yield "decoder.norm.weight", (2048,)
    yield "decoder.logits_dense.weight", (2048, 9, 1028)
    for i in range(18):
        at = f"decoder.layers.{i}"
        for name in ("pre_sa_norm", "pre_ca_norm", "pre_mlp_norm"):
            yield f"{at}.{name}.weight", (2048,)
        yield f"{at}.self_attention.q_proj.weight", (2048, 16, 128)
        yield f"{at}.self_attention.k_proj.weight", (2048, 4, 128)
        yield f"{at}.self_attention.v_proj.weight", (2048, 4, 128)
        yield f"{at}.self_attention.o_proj.weight", (16, 128, 2048)
        yield f"{at}.cross_attention.q_proj.weight", (2048, 16, 128)
        yield f"{at}.cross_attention.k_proj.weight", (1024, 16, 128)
        yield f"{at}.cross_attention.v_proj.weight", (1024, 16, 128)
        yield f"{at}.cross_attention.o_proj.weight", (16, 128, 2048)
        yield f"{at}.mlp.wi_fused.weight", (2048, 2, 8192)
        yield f"{at}.mlp.wo.weight", (8192, 2048)


def test_a_native_checkpoint_holds_the_343_published_tensors() -> None:
    pieces = {piece.name: piece.shape for piece in pieces_of(FULL, Layout.NATIVE)}
    assert len(pieces) == 343
    assert pieces == dict(documented_native())


def test_a_transformers_checkpoint_holds_335_tensors_as_matrices() -> None:
    pieces = {piece.name: piece.shape for piece in pieces_of(FULL, Layout.TRANSFORMERS)}
    assert len(pieces) == 335
    assert pieces["model.decoder.embeddings.embed.weight"] == (9252, 2048)
    assert pieces["logits_dense.weight"] == (9252, 2048)
    assert pieces["model.encoder.layers.11.mlp.gate_up_proj.weight"] == (8192, 1024)
    assert pieces["model.encoder.layers.0.self_attention.o_proj.weight"] == (1024, 2048)
    assert pieces["model.decoder.layers.17.mlp.down_proj.weight"] == (2048, 8192)
    assert pieces["model.decoder.layers.0.self_attention.k_proj.weight"] == (512, 2048)
    assert pieces["model.decoder.layers.0.cross_attention.v_proj.weight"] == (2048, 1024)
    assert all(len(shape) <= 2 for shape in pieces.values())


def test_the_two_layouts_hold_transposed_kernels(model: DiaModel) -> None:
    native = export_dia(model, Layout.NATIVE)
    matrices = export_dia(model, Layout.TRANSFORMERS)
    query = native["decoder.layers.1.self_attention.q_proj.weight"]  # [32, 6, 8]
    assert torch.equal(
        matrices["model.decoder.layers.1.self_attention.q_proj.weight"], query.reshape(32, 48).T
    )
    output = native["decoder.layers.1.cross_attention.o_proj.weight"]  # [5, 4, 32]
    assert torch.equal(
        matrices["model.decoder.layers.1.cross_attention.o_proj.weight"], output.reshape(20, 32).T
    )
    tables = [native[f"decoder.embeddings.{c}.weight"] for c in range(9)]
    assert torch.equal(matrices["model.decoder.embeddings.embed.weight"], torch.cat(tables))

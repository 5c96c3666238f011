from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worker.codec.checkpoint import descript_name, load_codec, save_codec
from worker.codec.codec import Codec
from worker.codec.config import CodecConfig
from worker.errors import InvalidCheckpoint

CPU = torch.device("cpu")
OURS = "model.safetensors"

# Where Descript's numbered modules hold what ours name, for a codec of two blocks a side.
UNIT = {"snake1": "block.0", "conv1": "block.1", "snake2": "block.2", "conv2": "block.3"}
ENCODER_PARTS = {"conv1": "0", "block.0": "1", "block.1": "2", "snake1": "3", "conv2": "4"}
ENCODER_BLOCK = {
    "res_unit1": "block.0",
    "res_unit2": "block.1",
    "res_unit3": "block.2",
    "snake1": "block.3",
    "conv1": "block.4",
}
DECODER_BLOCK = {
    "snake1": "block.0",
    "conv_t1": "block.1",
    "res_unit1": "block.2",
    "res_unit2": "block.3",
    "res_unit3": "block.4",
}


def descript_modules(codebooks: int) -> dict[str, str]:
    """Every module with parameters: our name → Descript's."""
    names = {}
    for ours, theirs, blocks in (
        ("encoder", "encoder.block", ENCODER_BLOCK),
        ("decoder", "decoder.model", DECODER_BLOCK),
    ):
        for part, position in ENCODER_PARTS.items():
            if not part.startswith("block"):
                names[f"{ours}.{part}"] = f"{theirs}.{position}"
                continue
            for module, place in blocks.items():
                prefix, numbered = f"{ours}.{part}.{module}", f"{theirs}.{position}.{place}"
                if module.startswith("res_unit"):
                    names |= {f"{prefix}.{k}": f"{numbered}.{v}" for k, v in UNIT.items()}
                else:
                    names[prefix] = numbered
    for i in range(codebooks):
        for module in ("in_proj", "out_proj", "codebook"):
            names[f"quantizer.quantizers.{i}.{module}"] = f"quantizer.quantizers.{i}.{module}"
    return names


def descript_state(codec: Codec, factors: tuple[str, str]) -> dict[str, Tensor]:
    """The codec's weights as Descript saves them, weight norm included."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {}
    for ours, theirs in descript_modules(codec.codebooks).items():
        module = codec.network.get_submodule(ours)
        for name, parameter in module.named_parameters():
            if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d) or name == "bias":
                state[f"{theirs}.{name}"] = parameter.detach().clone()
                continue
            weight = parameter.detach()
            length = 0.5 + torch.rand(len(weight), 1, 1, generator=generator)
            state[f"{theirs}.{factors[0]}"] = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
            state[f"{theirs}.{factors[1]}"] = weight * length
    return state


def descript_kwargs(config: CodecConfig) -> dict[str, Any]:
    return {
        "encoder_dim": config.encoder_channels,
        "encoder_rates": list(config.encoder_strides),
        "latent_dim": None,
        "decoder_dim": config.decoder_channels,
        "decoder_rates": list(config.decoder_strides),
        "n_codebooks": config.codebooks,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "quantizer_dropout": 0.5,
        "sample_rate": config.sample_rate,
    }


def save_descript(codec: Codec, folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "weights.pth"
    metadata = {"kwargs": descript_kwargs(codec.config)}
    torch.save({"state_dict": state, "metadata": metadata}, path)
    return path


def loud(codec: Codec, codes: Tensor) -> Tensor:
    waveform = codec.decode(codes)
    assert waveform.abs().max() > 0.1
    return waveform


@pytest.mark.parametrize(
    "factors",
    [
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ],
)
def test_descript_weights_decode_as_the_network_they_were_written_from(
    tiny_codec: Codec, codes: Tensor, tmp_path: Path, factors: tuple[str, str]
) -> None:
    path = save_descript(tiny_codec, tmp_path, descript_state(tiny_codec, factors))
    from_folder, from_file = load_codec(tmp_path, CPU), load_codec(path, CPU)
    assert from_folder.config == tiny_codec.config
    assert (from_folder.decode(codes) - loud(tiny_codec, codes)).abs().max() < 1e-5
    assert torch.equal(from_folder.decode(codes), from_file.decode(codes))


def test_the_numbered_names_are_those_of_the_published_weights() -> None:
    assert {
        descript_name(name, depth=4)
        for name in (
            "encoder.conv2.bias",
            "encoder.block.3.res_unit2.snake2.alpha",
            "decoder.block.0.conv_t1.weight_g",
            "decoder.snake1.alpha",
            "quantizer.quantizers.8.codebook.weight",
        )
    } == {
        "encoder.block.6.bias",
        "encoder.block.4.block.1.block.2.alpha",
        "decoder.model.1.block.1.weight_g",
        "decoder.model.5.alpha",
        "quantizer.quantizers.8.codebook.weight",
    }


def test_a_saved_codec_loads_as_it_was(tiny_codec: Codec, codes: Tensor, tmp_path: Path) -> None:
    save_codec(tiny_codec, tmp_path)
    loaded = load_codec(tmp_path, CPU)
    assert loaded.config == tiny_codec.config
    assert torch.equal(loaded.decode(codes), tiny_codec.decode(codes))


def test_a_codec_loaded_for_a_cpu_decodes_long_runs_in_pieces(
    tiny_codec: Codec, tmp_path: Path
) -> None:
    save_codec(tiny_codec, tmp_path)
    assert load_codec(tmp_path, CPU).frames_at_once == 256


def test_saving_twice_gives_the_same_bytes(tiny_codec: Codec, tmp_path: Path) -> None:
    save_codec(tiny_codec, tmp_path / "a")
    save_codec(tiny_codec.network, tmp_path / "b")
    for name in (OURS, "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_weight_norm_left_on_by_training_is_folded(
    tiny_codec: Codec, codes: Tensor, tmp_path: Path
) -> None:
    network = copy.deepcopy(tiny_codec.network)
    for module in list(network.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.utils.parametrizations.weight_norm(module)
    save_codec(network, tmp_path)
    assert any("original0" in name for name in load_file(tmp_path / OURS))
    assert (load_codec(tmp_path, CPU).decode(codes) - loud(tiny_codec, codes)).abs().max() < 1e-5


def test_half_precision_weights_with_a_config_of_the_same_stem_load_in_full_precision(
    tiny_codec: Codec, codes: Tensor, tmp_path: Path
) -> None:
    save_codec(copy.deepcopy(tiny_codec.network).half(), tmp_path)
    (tmp_path / OURS).rename(tmp_path / "small.safetensors")
    (tmp_path / "config.json").rename(tmp_path / "small.json")
    codec = load_codec(tmp_path / "small.safetensors", CPU)
    assert {parameter.dtype for parameter in codec.network.parameters()} == {torch.float32}
    assert (codec.decode(codes) - loud(tiny_codec, codes)).abs().max() < 2e-2


def test_the_precision_asked_for_is_the_precision_of_every_parameter(
    tiny_codec: Codec, codes: Tensor, tmp_path: Path
) -> None:
    save_codec(tiny_codec, tmp_path)
    codec = load_codec(tmp_path, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in codec.network.parameters()} == {torch.bfloat16}
    assert codec.decode(codes).dtype == torch.float32
    assert (codec.decode(codes) - loud(tiny_codec, codes)).abs().mean() < 0.05


def test_every_tensor_that_does_not_fit_is_named_at_once(tiny_codec: Codec, tmp_path: Path) -> None:
    save_codec(tiny_codec, tmp_path)
    tensors = load_file(tmp_path / OURS)
    del tensors["encoder.conv1.bias"], tensors["decoder.block.1.res_unit3.snake2.alpha"]
    tensors["decoder.conv3.weight"] = torch.zeros(2)
    tensors["decoder.conv2.weight"] = torch.zeros(1, 4, 5)
    save_file(tensors, tmp_path / OURS)
    with pytest.raises(InvalidCheckpoint) as error:
        load_codec(tmp_path, CPU)
    assert error.value.message.endswith(
        "missing: encoder.conv1.bias, decoder.block.1.res_unit3.snake2.alpha; "
        "unexpected: decoder.conv3.weight; "
        "wrong shape: decoder.conv2.weight is [1, 4, 5], must be [1, 4, 7]"
    )


def test_descript_tensors_that_do_not_fit_are_named_as_descript_names_them(
    tiny_codec: Codec, tmp_path: Path
) -> None:
    state = descript_state(tiny_codec, ("weight_g", "weight_v"))
    del state["decoder.model.0.weight_v"]
    state["encoder.block.0.weight_g"] = torch.ones(1, 1, 1)
    save_descript(tiny_codec, tmp_path, state)
    with pytest.raises(InvalidCheckpoint) as error:
        load_codec(tmp_path, CPU)
    assert error.value.message.endswith(
        "missing: decoder.model.0.weight; unexpected: decoder.model.0.weight_g; "
        "wrong shape: encoder.block.0.weight_g is [1, 1, 1], must be [8, 1, 1]"
    )


def test_the_fingerprint_follows_the_weights_and_the_config(
    tiny_codec: Codec, tmp_path: Path
) -> None:
    save_codec(tiny_codec, tmp_path)
    first = load_codec(tmp_path, CPU).fingerprint
    assert load_codec(tmp_path, CPU).fingerprint == first
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("8000", "16000"))
    second = load_codec(tmp_path, CPU).fingerprint
    tensors = load_file(tmp_path / OURS)
    tensors["decoder.conv2.bias"] += 1
    save_file(tensors, tmp_path / OURS)
    third = load_codec(tmp_path, CPU).fingerprint
    assert len({first, second, third}) == 3


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match=r"holds none of model.safetensors, weights.pth"):
        load_codec(tmp_path, CPU)


def test_weights_without_dimensions_are_refused(tiny_codec: Codec, tmp_path: Path) -> None:
    save_codec(tiny_codec, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InvalidCheckpoint, match=r"no config.json beside it"):
        load_codec(tmp_path, CPU)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InvalidCheckpoint, match=r"config.json: cannot be read"):
        load_codec(tmp_path, CPU)

"""Codec weights between files and a network: the Descript and the transformers layouts.

Knows how each layout names its tensors and that either may keep weight norm's two factors instead
of the weight. Whatever does not fit exactly is refused, and everything that does not fit is named.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.codec.codec import Codec
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.errors import InvalidCheckpoint
from worker.tensors import Checkpoint, open_checkpoint, uninitialised

WEIGHT_FILES = ("model.safetensors", "weights.pth")  # in a folder, the first found is used
CONFIG_FILE = "config.json"

# Frames decoded at once, by kind of device. At full size a frame takes 1.2 MB in float32 and half
# of that in half precision, so 2048 frames, 24 s, take 2.4 or 1.2 GB. On a CPU 256 are as fast as
# more: 20 s by dia-tiny's codec in no more time than whole, the process at 0.5 GB instead of 1.4.
FRAMES_AT_ONCE = {"cpu": 256, "cuda": 2048}

# Weight norm's magnitude g and direction v, as older and as newer versions of torch name them.
WEIGHT_NORM_NAMES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)

_UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
_ENCODER_BLOCK = {"res_unit1": 0, "res_unit2": 1, "res_unit3": 2, "snake1": 3, "conv1": 4}
_DECODER_BLOCK = {"snake1": 0, "conv_t1": 1, "res_unit1": 2, "res_unit2": 3, "res_unit3": 4}


def load_codec(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Codec:
    """Loads a codec.

    Args:
        path: A folder with `model.safetensors` and `config.json`, or with `weights.pth`; or a file
            of weights, whose dimensions it carries itself or has beside it, in `<its stem>.json`
            or `config.json`.
        device: Where the parameters are allocated, and tensors copied one at a time.
        dtype: Precision of the parameters.

    Raises:
        InvalidCheckpoint: if the weights or the dimensions are absent, unreadable, or do not fit
            each other; every tensor that is missing, unexpected or of a wrong shape is named.
    """
    file = _weights_file(path)
    checkpoint = open_checkpoint(file)
    config = _read_config(file, checkpoint)
    with uninitialised(device, dtype):
        network = CodecNetwork(config)
    _fill(network, checkpoint, file)
    fingerprint = _fingerprint(checkpoint, config)
    return Codec(network, fingerprint, frames_at_once=FRAMES_AT_ONCE.get(device.type))


def save_codec(codec: Codec | CodecNetwork, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` in the transformers layout.

    Equal networks give equal files, byte for byte. The folder is created if need be.
    """
    network = codec.network if isinstance(codec, Codec) else codec
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(network.config.to_transformers(), indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHT_FILES[0], metadata={"format": "pt"})


def descript_name(name: str, depth: int) -> str:
    """A parameter's name in the Descript layout, where modules are numbered.

    Args:
        name: The parameter's name in `CodecNetwork`.
        depth: Number of blocks on the parameter's side, encoder or decoder.
    """
    side, part, *rest = name.split(".")
    if side == "quantizer":
        return name
    stem, table = (
        ("encoder.block", _ENCODER_BLOCK)
        if side == "encoder"
        else ("decoder.model", _DECODER_BLOCK)
    )
    if part != "block":
        position = {"conv1": 0, "snake1": depth + 1, "conv2": depth + 2}[part]
        return ".".join([stem, str(position), *rest])
    index, module, *rest = rest
    names = [stem, str(int(index) + 1), "block", str(table[module])]
    if module.startswith("res_unit"):
        names += ["block", str(_UNIT[rest.pop(0)])]
    return ".".join([*names, *rest])


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise InvalidCheckpoint(f"{path}: holds none of {', '.join(WEIGHT_FILES)}")


def _read_config(file: Path, checkpoint: Checkpoint) -> CodecConfig:
    kwargs = checkpoint.metadata.get("kwargs")
    if isinstance(kwargs, dict):
        return CodecConfig.from_descript(kwargs)
    for beside in (file.with_suffix(".json"), file.with_name(CONFIG_FILE)):
        if beside != file and beside.is_file():
            return CodecConfig.from_transformers(_read_json(beside))
    raise InvalidCheckpoint(f"{file}: there is no {CONFIG_FILE} beside it")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InvalidCheckpoint(f"{path}: must hold a JSON object")
    return values


def _fingerprint(checkpoint: Checkpoint, config: CodecConfig) -> str:
    text = f"{checkpoint.fingerprint()} {config}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def _fill(network: CodecNetwork, checkpoint: Checkpoint, file: Path) -> None:
    """Copies every tensor into its parameter, or names all that do not fit."""
    unused = dict.fromkeys(checkpoint)
    missing: list[str] = []
    misshaped: list[str] = []
    for name, parameter in _named_as_in(checkpoint, network).items():
        sources = _sources(name, checkpoint)
        if not sources:
            missing.append(name)
            continue
        for source in sources:
            unused.pop(source, None)
        tensors = [checkpoint.load(source) for source in sources]
        expected = _expected_shapes(parameter, len(sources))
        wrong = [
            f"{source} is {list(tensor.shape)}, must be {shape}"
            for source, tensor, shape in zip(sources, tensors, expected, strict=True)
            if list(tensor.shape) != shape
        ]
        misshaped += wrong
        if not wrong:
            parameter.copy_(tensors[0] if len(tensors) == 1 else _fold(*tensors))
    problems = {"missing": missing, "unexpected": list(unused), "wrong shape": misshaped}
    complaint = "; ".join(
        f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names
    )
    if complaint:
        raise InvalidCheckpoint(f"{file}: {complaint}")


def _named_as_in(checkpoint: Checkpoint, network: CodecNetwork) -> dict[str, nn.Parameter]:
    """The network's parameters under the names that the checkpoint's layout gives them."""
    parameters = dict(network.named_parameters())
    if not any(name.startswith("decoder.model.") for name in checkpoint):
        return parameters
    depths = {"encoder": len(network.encoder.block), "decoder": len(network.decoder.block)}
    return {
        descript_name(name, depths.get(name.split(".")[0], 0)): parameter
        for name, parameter in parameters.items()
    }


def _sources(name: str, checkpoint: Checkpoint) -> list[str]:
    """The tensors that make up a parameter: itself, or g and v of its weight norm."""
    if name in checkpoint:
        return [name]
    module, _, kind = name.rpartition(".")
    if kind == "weight":
        for pair in WEIGHT_NORM_NAMES:
            names = [f"{module}.{factor}" for factor in pair]
            if all(factor in checkpoint for factor in names):
                return names
    return []


def _expected_shapes(parameter: Tensor, sources: int) -> list[list[int]]:
    shape = list(parameter.shape)
    return [shape] if sources == 1 else [[shape[0], *[1] * (len(shape) - 1)], shape]


def _fold(magnitude: Tensor, direction: Tensor) -> Tensor:
    """Weight norm undone: g · v / ‖v‖, the norm taken for each index of the first dimension."""
    direction = direction.float()
    axes = list(range(1, direction.ndim))
    norm: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    return direction * (magnitude.float() / norm)

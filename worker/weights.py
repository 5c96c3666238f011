"""Where the weights lie: the model folders, in the order in which they are looked for.

Knows places: the image, RunPod's cached models, the hub's cache, the hub. Does not know tensors,
and does not need torch: whether there is a CUDA device is told by the caller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from worker.errors import InvalidConfig, WeightsNotFound
from worker.hub import CONFIG, Place, Wanted, cached, download, search, weights_in
from worker.limits import REPOSITORY, WEIGHTS_SUFFIXES
from worker.settings import REPOSITORY_ROOT, CodecSettings, ModelSettings, Settings, expanded

__all__ = ["EMBEDDED", "RUNPOD_HUB", "ModelFiles", "find_codec", "find_dia"]

EMBEDDED = "dia-tiny"
RUNPOD_HUB = Path("/runpod-volume/huggingface-cache/hub")

_USUAL_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "dia-v0_1_bf16.safetensors",
    "dia-v0_1.safetensors",
    "dia-v0_1.pth",
    "pytorch_model.bin",
)
_CODEC_NAMES = ("model.safetensors",)
DESCRIPT_WEIGHTS = "weights.pth"
_MODEL_DEFAULTS = ModelSettings()
_CODEC_DEFAULTS = CodecSettings()


@dataclass(frozen=True)
class ModelFiles:
    """A model that was found.

    Attributes:
        name: The repository, the folder's name, or `dia-tiny`.
        config: Its `config.json`.
        weights: Its weights, or the index of their shards.
        origin: Where it was found, in words.
        embedded: Whether it is the tiny model that comes with the worker.
    """

    name: str
    config: Path
    weights: Path
    origin: str
    embedded: bool


def find_dia(
    settings: Settings,
    cuda_available: bool,
    *,
    root: Path = REPOSITORY_ROOT,
    runpod_hub: Path = RUNPOD_HUB,
) -> ModelFiles:
    """Finds the Dia model; downloads it where it lies nowhere.

    Off RunPod, without a CUDA device and with nothing chosen, that is the embedded model.

    Args:
        settings: `model` and `platform` are read.
        cuda_available: Whether the process sees a CUDA device.
        root: The repository's root, or the application's folder in an image.
        runpod_hub: Where RunPod mounts its cached models.

    Raises:
        InvalidConfig: `DIA_MODEL` is neither `dia-tiny`, nor an existing path, nor org/name.
        WeightsNotFound: lists every place where it looked, and how to mend it.
    """
    model = settings.model
    if model.source == EMBEDDED or _embedded_by_default(settings, cuda_available):
        return _embedded(root)
    if model.source is not None:
        path = _existing(model.source, root)
        if path is not None:
            return _at(path, _names(model))
        if not re.fullmatch(REPOSITORY, model.source):
            raise InvalidConfig(
                f"DIA_MODEL (model.source): {model.source!r} is not allowed; it must be "
                f"{EMBEDDED}, an existing folder or weights file, or a repository, as org/name"
            )
    wanted = Wanted(model.source or model.repo_id, model.revision, _names(model))
    weights, origin = search(
        wanted,
        _repository_places(wanted, settings, root, runpod_hub),
        "put them into the image under models/, choose the repository as the endpoint's cached "
        "model, or set DIA_MODEL to a folder that holds them",
    )
    return ModelFiles(wanted.repo_id, weights.parent / CONFIG, weights, origin, embedded=False)


def find_codec(
    settings: Settings,
    beside: ModelFiles,
    *,
    root: Path = REPOSITORY_ROOT,
    runpod_hub: Path = RUNPOD_HUB,
) -> Path:
    """Finds the audio codec: the folder or the weights file that `load_codec` reads.

    Args:
        settings: `codec` and `platform` are read.
        beside: The Dia model; a codec that lies beside its weights is taken first, unless another
            repository was chosen.
        root: As for `find_dia`.
        runpod_hub: As for `find_dia`.

    Raises:
        InvalidConfig: `codec.path` does not exist.
        WeightsNotFound: as for `find_dia`.
    """
    codec = settings.codec
    if codec.path is not None:
        return _chosen_codec(codec.path)
    wanted = Wanted(codec.repo_id, codec.revision, _CODEC_NAMES)
    places: list[Place] = []
    chosen = codec.repo_id != _CODEC_DEFAULTS.repo_id
    if not chosen:
        places += _places_beside(beside.weights.parent)
    if beside.embedded and not chosen:
        fix = f"run `make model`, which makes {EMBEDDED} and its codec"
    else:
        places += _repository_places(wanted, settings, root, runpod_hub)
        fix = "put it into the image under models/, or set DAC_MODEL to a folder that holds it"
    return search(wanted, places, fix)[0].parent


# What is chosen


def _embedded_by_default(settings: Settings, cuda_available: bool) -> bool:
    model = settings.model
    chosen = model.source is not None or model.repo_id != _MODEL_DEFAULTS.repo_id
    return not (chosen or cuda_available or settings.platform.on_runpod)


def _names(model: ModelSettings) -> tuple[str, ...]:
    """The configured file alone, unless that is the default's and the model is another one."""
    repository = model.source or model.repo_id
    default = model.weights_filename == _MODEL_DEFAULTS.weights_filename
    other_model = repository != _MODEL_DEFAULTS.repo_id
    return _USUAL_NAMES if default and other_model else (model.weights_filename,)


def _existing(source: str, root: Path) -> Path | None:
    """The path that was meant, seen from the working directory, else from the root."""
    path = expanded(source)
    candidates = (path.absolute(), root / path)
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _at(path: Path, names: tuple[str, ...]) -> ModelFiles:
    """The model in a folder, or of a weights file, that was named outright."""
    if path.is_file() and not path.name.endswith(WEIGHTS_SUFFIXES):
        raise InvalidConfig(
            f"DIA_MODEL (model.source): {str(path)!r} is not allowed; a weights file ends in "
            f"{', '.join(WEIGHTS_SUFFIXES)}"
        )
    folder, names = (path.parent, (path.name,)) if path.is_file() else (path, names)
    try:
        weights = weights_in(folder, names)
    except WeightsNotFound as miss:
        raise WeightsNotFound(
            f"DIA_MODEL: {miss.message}. To mend it, put {CONFIG} and the weights there"
        ) from miss
    return ModelFiles(folder.name, folder / CONFIG, weights, "the path in DIA_MODEL", False)


def _embedded(root: Path) -> ModelFiles:
    folder = root / "models" / EMBEDDED
    try:
        weights = weights_in(folder, ("model.safetensors",))
    except WeightsNotFound as miss:
        raise WeightsNotFound(f"{EMBEDDED}: {miss.message}. To make it, run `make model`") from miss
    return ModelFiles(EMBEDDED, folder / CONFIG, weights, "embedded in the worker", embedded=True)


def _chosen_codec(path: Path) -> Path:
    """A folder in the transformers layout, or Descript's own `weights.pth`, in a folder or not."""
    if path.is_file():
        return path
    if (path / DESCRIPT_WEIGHTS).is_file():
        return path / DESCRIPT_WEIGHTS
    if not path.is_dir():
        raise InvalidConfig(
            f"DAC_MODEL (codec.path): {str(path)!r} is not allowed; it must be an existing folder "
            "or weights file, or a repository, as org/name"
        )
    try:
        return weights_in(path, _CODEC_NAMES).parent
    except WeightsNotFound as miss:
        raise WeightsNotFound(
            f"DAC_MODEL: {miss.message}. To mend it, put {CONFIG} and {_CODEC_NAMES[0]}, or "
            f"{DESCRIPT_WEIGHTS}, there"
        ) from miss


# Where a repository may lie


def _places_beside(folder: Path) -> list[Place]:
    return [
        ("beside the Dia weights", lambda: weights_in(folder / "codec", _CODEC_NAMES)),
        ("beside the Dia weights", lambda: weights_in(folder / "dac", _CODEC_NAMES)),
    ]


def _repository_places(
    wanted: Wanted, settings: Settings, root: Path, runpod_hub: Path
) -> list[Place]:
    platform = settings.platform
    baked = root / "models" / wanted.repo_id.partition("/")[2]
    return [
        ("baked into the image", lambda: weights_in(baked, wanted.names)),
        ("RunPod's cached models", lambda: cached(runpod_hub, wanted)),
        ("the hub's cache", lambda: cached(platform.hub_cache, wanted)),
        (
            "a download from the hub",
            lambda: download(wanted, platform.hub_cache, platform.hub_offline),
        ),
    ]

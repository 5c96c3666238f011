"""A house in which weights may lie: every place empty, until a test fills it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from worker.config import load_settings
from worker.errors import WeightsNotFound
from worker.settings import Settings
from worker.weights import ModelFiles, find_codec, find_dia

DIA = "ttj/dia-1.6b-safetensors"
BF16 = "dia-v0_1_bf16.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})


def fill(folder: Path, *names: str) -> Path:
    """A model folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(INDEX if name.endswith(".index.json") else "{}")
    return folder


@dataclass
class House:
    """Every place where weights may lie, all of them empty, and none of them real."""

    root: Path
    runpod_hub: Path
    hub_cache: Path
    environ: dict[str, str] = field(default_factory=dict)

    def settings(self, **environ: str) -> Settings:
        base = {"HF_HUB_CACHE": str(self.hub_cache), "HF_HUB_OFFLINE": "1", **self.environ}
        return load_settings({**base, **environ})

    def dia(self, *, cuda: bool = True, **environ: str) -> ModelFiles:
        return find_dia(
            self.settings(**environ),
            cuda_available=cuda,
            root=self.root,
            runpod_hub=self.runpod_hub,
        )

    def codec(self, beside: ModelFiles | None = None, **environ: str) -> Path:
        beside = beside or ModelFiles(
            DIA, self.root / "x/config.json", self.root / "x/w.pth", "a test", embedded=False
        )
        return find_codec(
            self.settings(**environ), beside, root=self.root, runpod_hub=self.runpod_hub
        )

    def baked(self, repository: str, *names: str) -> Path:
        return fill(self.root / "models" / repository.split("/")[1], *names)

    def cached(self, hub: Path, repository: str, *names: str, ref: str = "main") -> Path:
        folder = hub / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(COMMIT)
        return fill(folder / "snapshots" / COMMIT, *names)

    def embedded(self) -> Path:
        folder = fill(self.root / "models/dia-tiny", "config.json", "model.safetensors")
        fill(folder / "codec", "config.json", "model.safetensors")
        return folder


def missed(look: partial[ModelFiles] | partial[Path]) -> str:
    """What is said when nothing is found: always one line."""
    with pytest.raises(WeightsNotFound) as caught:
        look()
    assert "\n" not in caught.value.message
    return caught.value.message


def look_in(house: House, **environ: str) -> partial[ModelFiles]:
    """The search for Dia on a machine with a GPU."""
    return partial(house.dia, **environ)

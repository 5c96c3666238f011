"""Which models an image may hold, at which commit, and what their files are to the byte.

A file whose hash is not here is only taken when it is asked for outright (`--unpinned`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

HUB = "https://huggingface.co"
GITHUB = "https://github.com"


@dataclass(frozen=True)
class Published:
    """One file as it is published; `None` is what is not known of it."""

    name: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Pin:
    """A model, and where to find it.

    Attributes:
        repository: As org/name.
        revision: A commit of the hub, or a release; `None` is not known.
        files: All that the worker reads of it.
        folder: Its name under `models/`, where `worker.weights` looks.
        on_github: Whether it is a release there; else it is on the hub.
    """

    repository: str
    revision: str | None
    files: tuple[Published, ...]
    folder: str
    on_github: bool = False

    @property
    def pinned(self) -> bool:
        """Whether every hash is known."""
        return all(file.sha256 for file in self.files)

    def at(self, revision: str | None) -> Pin:
        """The model at a revision; at another than the pinned one no hash is known."""
        if revision in (None, self.revision):
            return self
        unknown = tuple(Published(file.name) for file in self.files)
        return replace(self, revision=revision, files=unknown)


DIA = {
    "nari-labs/Dia-1.6B-0626": Pin(
        "nari-labs/Dia-1.6B-0626",
        "ef2795fcc29c5abe6ffc91fd33808588b49bbc66",
        (
            Published(
                "config.json",
                1_396,
                "4f4e9c50e6898fa79d6fe16e9991bebef07a4d3dd6926eee5eb7f7e39c88e04f",
            ),
            Published(  # native layout, float32; an image gets it in bfloat16
                "pytorch_model.bin",
                6_444_787_333,
                "8a5106c06899aeea013a7f6ef32e84a15a30f965be676b97996b3ddaf1eb55b9",
            ),
        ),
        folder="Dia-1.6B-0626",
    ),
    "ttj/dia-1.6b-safetensors": Pin(
        "ttj/dia-1.6b-safetensors",
        None,
        (Published("config.json"), Published("dia-v0_1_bf16.safetensors")),
        folder="dia-1.6b-safetensors",
    ),
}
CODECS = {
    "descriptinc/descript-audio-codec": Pin(
        "descriptinc/descript-audio-codec",
        "0.0.1",
        (
            Published(
                "weights.pth",
                306_717_287,
                "a88eed82a7024ccc1facdb1e605c4c2f99281c8118c22c9895ffa846d8fb61aa",
            ),
        ),
        folder="dac_44khz",
        on_github=True,
    ),
    "descript/dac_44khz": Pin(
        "descript/dac_44khz",
        "c1bc521685adf9cfe247bc39a5ca58917eda1ac4",
        (
            Published(
                "config.json",
                541,
                "4eb55fb9af1990b8d608184ad29b70e358589719af7ea8d3c06998f7c2264a64",
            ),
            Published(
                "model.safetensors",
                306_507_276,
                "6128ebff483a41422b0164d079a3773b0d8d82e64c4293d775994cbf8baf913a",
            ),
        ),
        folder="dac_44khz",
    ),
}

"""Looks for a repository's files: in a folder, in a cache of the hub, on the hub itself.

Each look either returns the weights file or says in one line why it is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from worker.errors import WeightsNotFound

CONFIG = "config.json"

# What a download takes where no revision is set; of other repositories, the default branch.
PINNED = {
    "nari-labs/Dia-1.6B-0626": "ef2795fcc29c5abe6ffc91fd33808588b49bbc66",
    "descript/dac_44khz": "c1bc521685adf9cfe247bc39a5ca58917eda1ac4",
}

# What a download may fail with. The bases of HfHubHTTPError stand for whichever HTTP library the
# installed hub client uses; a RuntimeError is what its native transfer library raises.
DOWNLOAD_ERRORS: tuple[type[BaseException], ...] = (
    *HfHubHTTPError.__bases__,
    HFValidationError,
    EntryNotFoundError,
    OSError,
    RuntimeError,
)


@dataclass(frozen=True)
class Wanted:
    """A repository, and the names that its weights may have, best first."""

    repo_id: str
    revision: str | None
    names: tuple[str, ...]

    @property
    def download_revision(self) -> str | None:
        """The revision that was set, else the pinned one; `None` is the default branch."""
        return self.revision or PINNED.get(self.repo_id)


Place = tuple[str, Callable[[], Path]]  # its name in words, and how to look for weights there


def search(wanted: Wanted, places: Iterable[Place], fix: str) -> tuple[Path, str]:
    """The first place that has the weights: the weights file, and the place in words."""
    misses: list[str] = []
    for origin, look in places:
        try:
            return look(), origin
        except WeightsNotFound as miss:
            misses.append(f"({len(misses) + 1}) {origin}: {miss.message}")
        except OSError as error:  # a folder that may not be read, for one
            misses.append(f"({len(misses) + 1}) {origin}: {_one_line(error)}")
    raise WeightsNotFound(
        f"{wanted.repo_id} lies in none of the places where it may: {'; '.join(misses)}. "
        f"To mend it, {fix}"
    )


def weights_in(folder: Path, names: Iterable[str]) -> Path:
    """The first of the names that is whole, in a folder that has a `config.json`."""
    if not folder.is_dir():
        raise WeightsNotFound(f"{folder}: no such folder")
    if not (folder / CONFIG).is_file():
        raise WeightsNotFound(f"{folder}: no {CONFIG}")
    reasons = []
    for name in names:
        path = folder / name
        missing = [file for file in (name, *_shards(path)) if not (folder / file).is_file()]
        if not missing:
            return path
        reasons.append(", ".join(missing))
    raise WeightsNotFound(f"{folder}: no {' or '.join(reasons)}")


def _shards(path: Path) -> list[str]:
    """The files that an index names; none for a weights file that is whole by itself."""
    if not path.name.endswith(".index.json") or not path.is_file():
        return []
    try:
        return sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsNotFound(f"{path}: not an index of shards") from error


def cached(hub: Path, wanted: Wanted) -> Path:
    """Looks into a cache that is laid out as `huggingface_hub` lays out its own."""
    repository = hub / f"models--{wanted.repo_id.replace('/', '--')}"
    if not repository.is_dir():
        raise WeightsNotFound(f"{repository}: no such folder")
    ref = repository / "refs" / (wanted.revision or "main")
    # A download of a commit leaves no refs/main behind.
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else wanted.download_revision
    return weights_in(repository / "snapshots" / (commit or "main"), wanted.names)


def download(wanted: Wanted, hub_cache: Path, offline: bool) -> Path:
    """Downloads the configuration, the weights, and the shards that they name."""
    if offline:
        raise WeightsNotFound("not tried, because HF_HUB_OFFLINE is set")

    def fetch(name: str) -> Path:
        path = huggingface_hub.hf_hub_download(
            wanted.repo_id, name, revision=wanted.download_revision, cache_dir=hub_cache
        )
        return Path(path)

    try:
        folder = fetch(CONFIG).parent
        weights = _first_there(fetch, wanted.names)
        for shard in _shards(weights):
            fetch(shard)
    except DOWNLOAD_ERRORS as error:
        raise WeightsNotFound(_one_line(error)) from error
    return weights_in(folder, [weights.name])


def _first_there(fetch: Callable[[str], Path], names: tuple[str, ...]) -> Path:
    for name in names:
        try:
            return fetch(name)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the hub was not even reached
                raise
    raise WeightsNotFound(f"the repository has no {' or '.join(names)}")


def _one_line(error: BaseException) -> str:
    """The error, and what caused it, short enough for a list."""
    cause = f" ({type(error.__cause__).__name__})" if error.__cause__ else ""
    return f"{type(error).__name__}{cause}: {' '.join(str(error).split())[:200]}"

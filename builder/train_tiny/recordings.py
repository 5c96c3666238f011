"""Recorded sentences in files: shards of 16-bit samples, each with an index beside it.

A shard is whole once its index is there, so a stage that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from builder.train_tiny.tools import EXTRA_INDEX, EXTRA_SOUND


@dataclass(frozen=True)
class Entry:
    """One sentence in a shard."""

    text: str
    speaker: str
    rate: int  # Hz, the speaker's own
    start: int  # sample of the shard
    length: int  # samples
    use: str  # TRAIN, HELD_OUT or UNSEEN of `config`


@dataclass(frozen=True, eq=False)
class Recording:
    """A sentence as it was spoken."""

    text: str
    speaker: str
    rate: int
    use: str
    samples: NDArray[np.int16]  # a view into the shard

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.samples) / self.rate


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard was written completely."""
    return _index(folder, number).is_file()


def write_shard(folder: Path, number: int, spoken: Iterable[Recording]) -> float:
    """Writes one shard; returns its seconds."""
    entries, pieces, start, seconds = [], [np.zeros(0, np.int16)], 0, 0.0
    for one in spoken:
        entries.append(Entry(one.text, one.speaker, one.rate, start, len(one.samples), one.use))
        pieces.append(one.samples)
        start += len(one.samples)
        seconds += one.seconds
    np.save(folder / f"{number:05d}.npy", np.concatenate(pieces))
    partial = _index(folder, number).with_suffix(".part")
    partial.write_text(json.dumps([asdict(entry) for entry in entries]))
    partial.rename(_index(folder, number))
    return seconds


class Shards:
    """A folder of shards that may still be growing.

    Args:
        folder: where another process may be writing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: set[Path] = set()

    def new(self) -> list[Recording]:
        """What has come since the last time, in memory: 15 hours are 2.6 GB."""
        recordings: list[Recording] = []
        for index in sorted(set(self._folder.glob("*.json")) - self._read):
            recordings += _views(index, np.load(index.with_suffix(".npy")))
            self._read.add(index)
        return recordings


def read_recordings(folder: Path) -> list[Recording]:
    """All whole shards."""
    return Shards(folder).new()


def read_extra(tools: Path) -> list[Recording]:
    """The speech that was made beforehand; none where there is none."""
    index = tools / EXTRA_INDEX
    if not index.is_file():
        return []
    return list(_views(index, np.load(tools / EXTRA_SOUND)["sound"]))


def _views(index: Path, samples: NDArray[np.int16]) -> Iterator[Recording]:
    for fields in json.loads(index.read_text()):
        entry = Entry(**fields)
        view = samples[entry.start : entry.start + entry.length]
        yield Recording(entry.text, entry.speaker, entry.rate, entry.use, view)


def _index(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"

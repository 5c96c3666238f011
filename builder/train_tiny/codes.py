"""Encoded sentences in files, packed to ten bits a code, so that they may travel.

A folder holds `codes.NN.npz` of at most 14 MB each; `silence` is the codec's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LARGEST = 11_000_000  # codes of one file: 13.75 MB
SILENCE = "silence.npy"


@dataclass(frozen=True, eq=False)
class Utterance:
    """A sentence as codes."""

    text: str
    speaker: str
    use: str  # TRAIN, HELD_OUT or UNSEEN of `config`
    codes: NDArray[np.int16]  # [T, C]


@dataclass(frozen=True)
class Corpus:
    """All that the model is trained on."""

    utterances: list[Utterance]
    silence: NDArray[np.int16]  # [T, C]

    def only(self, use: str) -> Corpus:
        """The utterances for one use."""
        return Corpus([one for one in self.utterances if one.use == use], self.silence)


def pack(codes: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Ten bits each: the low bytes, then the high pairs of bits, four to a byte."""
    flat = codes.ravel()
    high = np.zeros(-(-len(flat) // 4) * 4, np.uint8)
    high[: len(flat)] = flat >> 8
    fours = high.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)
    return np.concatenate([(flat & 255).astype(np.uint8), fours.sum(1, dtype=np.uint8)])


def unpack(packed: NDArray[np.uint8], count: int) -> NDArray[np.int16]:
    """The inverse of `pack`, for `count` codes."""
    low, fours = packed[:count].astype(np.int16), packed[count:]
    high = (fours[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return low | (high.ravel()[:count].astype(np.int16) << 8)


def write_codes(folder: Path, corpus: Corpus) -> None:
    """Writes a corpus; what was there before goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("codes.*.npz"):
        old.unlink()
    np.save(folder / SILENCE, corpus.silence)
    part: list[Utterance] = []
    number = size = 0
    for utterance in corpus.utterances:
        if size + utterance.codes.size > LARGEST and part:
            _write_part(folder / f"codes.{number:02d}.npz", part)
            part, size, number = [], 0, number + 1
        part.append(utterance)
        size += utterance.codes.size
    if part:
        _write_part(folder / f"codes.{number:02d}.npz", part)


def read_codes(folder: Path) -> Corpus:
    """Reads what `write_codes` wrote."""
    silence = np.load(folder / SILENCE)
    utterances: list[Utterance] = []
    for file in sorted(folder.glob("codes.*.npz")):
        utterances += _read_part(file, silence.shape[1])
    return Corpus(utterances, silence)


def _write_part(file: Path, part: list[Utterance]) -> None:
    index = [[one.text, one.speaker, one.use, len(one.codes)] for one in part]
    described = np.frombuffer(json.dumps(index).encode(), np.uint8)
    codes = np.concatenate([one.codes for one in part])
    np.savez_compressed(file, index=described, codes=pack(codes))


def _read_part(file: Path, channels: int) -> list[Utterance]:
    content = np.load(file)
    index = json.loads(content["index"].tobytes())
    total = sum(length for *_, length in index)
    codes = unpack(content["codes"], total * channels).reshape(-1, channels)
    utterances, start = [], 0
    for text, speaker, use, length in index:
        utterances.append(Utterance(text, speaker, use, codes[start : start + length]))
        start += length
    return utterances

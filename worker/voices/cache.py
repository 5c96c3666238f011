"""Codes kept: in memory by last use, and as the bytes of a safetensors file.

Knows when kept codes may not be used any more. Knows nothing of where the bytes lie.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

logger = logging.getLogger(__name__)

CODES_VERSION = "1"  # of the layout below; other versions are made anew

V = TypeVar("V")


class LruCache(Generic[V]):
    """At most `size` values; the least recently used goes first. Not thread-safe."""

    def __init__(self, size: int) -> None:
        assert size >= 0, "a cache cannot hold less than nothing"
        self._size = size
        self._values: OrderedDict[str, V] = OrderedDict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, key: str) -> V | None:
        """The value, which becomes the most recently used; None if it is not here."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        """Keeps a value as the most recently used."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)


@dataclass(frozen=True, eq=False)
class Codes:
    """What encoding a recording gave, and from which recording by which codec."""

    tensor: Tensor  # [T, C] int64 on the CPU
    samples: int  # of the waveform that was encoded
    fingerprint: str  # of the codec
    audio_sha256: str  # of the recording's file


def pack_codes(codes: Codes) -> bytes:
    """The bytes of a safetensors file."""
    tensor = codes.tensor.to(torch.int32).contiguous()  # codes are 0 to 1023
    metadata = {
        "version": CODES_VERSION,
        "codec": codes.fingerprint,
        "audio_sha256": codes.audio_sha256,
        "samples": str(codes.samples),
        "codes_sha256": _sha256(tensor),
    }
    return save({"codes": tensor}, metadata)


def unpack_codes(data: bytes, fingerprint: str, audio_sha256: str) -> Codes | None:
    """The codes in a file made by `pack_codes`.

    Returns:
        None if they are of another recording, codec or version, or the file is damaged.
    """
    try:
        tensor, metadata = _read(data)
        samples = int(metadata["samples"])
    except (SafetensorError, KeyError, ValueError) as error:
        logger.warning("kept codes are damaged and will be made again: %s", error)
        return None
    expected = {"version": CODES_VERSION, "codec": fingerprint, "audio_sha256": audio_sha256}
    stale = [key for key, value in expected.items() if metadata.get(key) != value]
    if stale:
        logger.info("kept codes are stale and will be made again: %s differs", ", ".join(stale))
        return None
    return Codes(tensor, samples, fingerprint, audio_sha256)


def _read(data: bytes) -> tuple[Tensor, dict[str, Any]]:
    tensor = load(data)["codes"]  # checks the header and the length as well
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, Any] = json.loads(data[8 : 8 + size])["__metadata__"]
    if tensor.dtype != torch.int32 or tensor.ndim != 2 or not len(tensor):
        raise ValueError(f"a tensor {tuple(tensor.shape)} of {tensor.dtype} is not codes")
    if metadata["codes_sha256"] != _sha256(tensor):
        raise ValueError("the checksum differs")
    return tensor.to(torch.int64), metadata


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

"""What models and codecs share: checkpoint files, and memory for what they hold.

Named tensors are read one at a time, whatever the container: safetensors (one file or shards) or
torch pickles (`.pth`, `.bin`; with `weights_only=True`). Knows nothing of what they mean.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from worker.errors import InvalidCheckpoint

FINGERPRINT_SAMPLE = 256  # elements of each tensor that enter the fingerprint

_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)


class Checkpoint:
    """The named tensors of one checkpoint, and what its container says beside them."""

    def __init__(self, loaders: dict[str, Callable[[], Tensor]], metadata: dict[str, Any]) -> None:
        self._loaders = loaders
        self.metadata = metadata

    def __contains__(self, name: str) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def load(self, name: str) -> Tensor:
        """One tensor on the CPU, backed by the file where the container allows it."""
        return self._loaders[name]()

    def fingerprint(self) -> str:
        """16 hex digits that change with the names, shapes, types or values of the tensors.

        The first `FINGERPRINT_SAMPLE` elements of every tensor are read: training moves all
        of them, and the gigabytes of a real checkpoint need not pass through the hash.
        """
        digest = hashlib.sha256()
        for name in sorted(self._loaders):
            tensor = self.load(name)
            sample = tensor.flatten()[:FINGERPRINT_SAMPLE].float().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a `.safetensors`, `.safetensors.index.json`, `.pth`, `.pt` or `.bin` file.

    Raises:
        InvalidCheckpoint: if the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise InvalidCheckpoint(f"{path}: no such file")
    try:
        if path.name.endswith(".index.json"):
            return _open_shards(path)
        if path.suffix == ".safetensors":
            return _open_safetensors([path])
        if path.suffix in (".pth", ".pt", ".bin"):
            return _open_pickle(path)
    except _UNREADABLE as error:
        raise InvalidCheckpoint(f"{path}: cannot be read: {error}") from error
    raise InvalidCheckpoint(f"{path}: not one of .safetensors, .index.json, .pth, .pt, .bin")


def _open_safetensors(paths: list[Path]) -> Checkpoint:
    loaders: dict[str, Callable[[], Tensor]] = {}
    metadata: dict[str, Any] = {}
    for path in paths:
        file: Any = safe_open(path, framework="pt", device="cpu")
        metadata.update(file.metadata() or {})
        for name in file.keys():  # noqa: SIM118 - the handle is not a mapping
            loaders[name] = partial(file.get_tensor, name)
    return Checkpoint(loaders, metadata)


def _open_shards(index: Path) -> Checkpoint:
    files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    paths = [index.parent / name for name in files]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InvalidCheckpoint(f"{index}: shards missing: {', '.join(missing)}")
    return _open_safetensors(paths)


def _open_pickle(path: Path) -> Checkpoint:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors: dict[str, Tensor] = content.get("state_dict", content)
    metadata = content.get("metadata", {}) if "state_dict" in content else {}
    strange = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if strange:
        raise InvalidCheckpoint(f"{path}: not a tensor: {', '.join(map(str, strange[:6]))}")
    return Checkpoint({name: partial(_same, tensors[name]) for name in tensors}, metadata)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _NoInitialisation(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == torch.nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def uninitialised(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside have memory on the device, in the type, and whatever was in it.

    The meta device and `to_empty` would do the same, by way of torch's reference implementations,
    whose import takes seconds of a cold start.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, _NoInitialisation():
            yield
    finally:
        torch.set_default_dtype(before)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

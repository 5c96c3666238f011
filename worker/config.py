"""Settings: defaults, then `config.yaml`, then the environment; the later one wins.

Knows every environment variable that the worker reads; the keys are in `worker.settings`. Does not
know whether the places that are named exist: `worker.weights` and the voice library look there.
The `HF_*` variables that are not here (`HF_TOKEN`, `HF_ENDPOINT`) are read by `huggingface_hub`
itself.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from worker.errors import InvalidConfig
from worker.limits import REPOSITORY, refusal, shown
from worker.settings import Section, Settings, expanded

__all__ = ["VARIABLES", "load_settings"]

# Environment variable -> the key that it sets. `DIA_CONFIG` and the platform's names set none.
VARIABLES: Mapping[str, str] = {
    "DIA_MODEL": "model.source",
    "DIA_MODEL_REPO_ID": "model.repo_id",
    "DIA_MODEL_WEIGHTS_FILENAME": "model.weights_filename",
    "DIA_MODEL_REVISION": "model.revision",
    "DIA_MODEL_GENERATION": "model.generation",
    "MODEL_DEVICE": "model.device",
    "MODEL_DTYPE": "model.dtype",
    "DAC_MODEL": "codec.path",  # or codec.repo_id: see `_codec_keys`
    "VOICE_LIBRARY_PATH": "voice_library.path",
    "VOICE_CACHE_SIZE": "voice_library.max_cache_size",
    "PRELOAD_VOICES": "voice_library.preload_voices",
    "DEFAULT_SEED": "generation.defaults.seed",
    "DEFAULT_CHUNK_SIZE": "generation.defaults.chunk_size",
    "DEFAULT_ENABLE_CHUNKING": "generation.defaults.enable_chunking",
    "MAX_TEXT_LENGTH": "generation.limits.max_text_length",
    "CONCURRENT_REQUESTS": "generation.limits.concurrent_requests",
    "REMOTE_REFERENCES": "generation.limits.remote_references",
    "REMOTE_TIMEOUT_S": "generation.limits.remote_timeout_s",
    "JOB_TIMEOUT_S": "generation.limits.timeout_s",
    "MEMORY_OPTIMIZATION": "performance.memory_optimization",
    "CUDA_MEMORY_FRACTION": "performance.cuda_memory_fraction",
    "ENGINE_SLOTS": "performance.slots",
    "CUDA_GRAPHS": "performance.cuda_graphs",
    "FUSED_KERNELS": "performance.fused_kernels",
    "REPRODUCIBLE": "performance.reproducible",
    "KEEP_RESULTS_IN": "delivery.keep_in",
    "BUCKET_ENDPOINT_URL": "delivery.bucket.endpoint_url",
    "BUCKET_NAME": "delivery.bucket.name",
    "BUCKET_REGION": "delivery.bucket.region",
    "BUCKET_ACCESS_KEY_ID": "delivery.bucket.access_key_id",
    "BUCKET_SECRET_ACCESS_KEY": "delivery.bucket.secret_access_key",
    "BUCKET_PREFIX": "delivery.bucket.prefix",
    "BUCKET_URL_EXPIRY_S": "delivery.bucket.url_expiry_s",
    "ALLOW_PRIVATE_ENDPOINTS": "delivery.allow_private_endpoints",
    "RUNPOD_HANDLER_MODE": "platform.handler_mode",
    "HF_HUB_OFFLINE": "platform.hub_offline",
}
CONFIG_VARIABLE = "DIA_CONFIG"
RUNPOD_VARIABLES = ("RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "RUNPOD_WEBHOOK_GET_JOB")

_OWN_PREFIX = "DIA_"  # names that begin so are ours: an unknown one is a slip of the pen


def load_settings(
    environ: Mapping[str, str] = os.environ, config_file: Path | None = None
) -> Settings:
    """Reads the settings; an empty variable counts as unset, `null` as YAML's null.

    Relative paths of the file are taken from the repository's root, those of the environment
    from the working directory.

    Args:
        environ: The environment.
        config_file: The YAML file; by default the one that `DIA_CONFIG` names, else `config.yaml`
            in the working directory, if there is one.

    Raises:
        InvalidConfig: names the key or the variable, what was given, and what is valid.
    """
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    _refuse_unknown_variables(given)
    path = config_file or _default_file(given)
    values = _read_file(path) if path else {}
    for key, value in _from_environment(given):
        _put(values, key, value)
    try:
        return Settings(**values)
    except ValidationError as error:
        # The environment's values have been checked one by one: these come from the file
        raise InvalidConfig(f"{path}: {'; '.join(_complaints(error))}") from error


# The environment


def _refuse_unknown_variables(given: Iterable[str]) -> None:
    known = [CONFIG_VARIABLE, *(name for name in VARIABLES if name.startswith(_OWN_PREFIX))]
    for name in given:
        if name.startswith(_OWN_PREFIX) and name not in known:
            raise InvalidConfig(f"{name}: no such environment variable; {_hint(name, known)}")


def _default_file(given: Mapping[str, str]) -> Path | None:
    if CONFIG_VARIABLE in given:
        path = expanded(given[CONFIG_VARIABLE])
        if not path.is_file():
            raise InvalidConfig(f"{CONFIG_VARIABLE}: {str(path)!r} is no file; it must be one")
        return path
    path = Path("config.yaml")
    return path if path.exists() else None


def _from_environment(given: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Pairs of a dotted key and its value, parsed and checked."""
    for name, key in VARIABLES.items():
        if name == "DAC_MODEL" and name in given:
            yield from _codec_keys(given[name])
        elif name in given:
            yield key, _parsed(name, key, given[name])
    yield "platform.on_runpod", any(name in given for name in RUNPOD_VARIABLES)
    yield "platform.hub_cache", _hub_cache(given)


def _parsed(name: str, key: str, text: str) -> Any:
    if key in ("voice_library.path", "delivery.keep_in"):
        return expanded(text).absolute()
    if key == "voice_library.preload_voices":
        return [voice.strip() for voice in text.split(",") if voice.strip()]
    field = _field(key.split("."))
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
    try:
        return adapter.validate_python(None) if text == "null" else adapter.validate_strings(text)
    except ValidationError as error:
        raise InvalidConfig(refusal(name, text, field)) from error


def _codec_keys(text: str) -> Iterator[tuple[str, Any]]:
    """`DAC_MODEL` is a folder, or else a repository, which then wins over the file's folder."""
    path = expanded(text)
    is_repository = re.fullmatch(REPOSITORY, text) is not None and not path.exists()
    if is_repository:
        yield "codec.repo_id", text
    yield "codec.path", None if is_repository else path.absolute()


def _hub_cache(given: Mapping[str, str]) -> Path:
    """Where `huggingface_hub` would look, by its own rules."""
    if "HF_HUB_CACHE" in given:
        return expanded(given["HF_HUB_CACHE"]).absolute()
    if "HF_HOME" in given:
        return expanded(given["HF_HOME"]).absolute() / "hub"
    return expanded(given.get("XDG_CACHE_HOME", "~/.cache")).absolute() / "huggingface" / "hub"


# The file


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _checked(content, Settings, "")
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error.message}") from error


def _checked(node: Any, section: type[BaseModel], prefix: str) -> dict[str, Any]:
    """The section's mapping, free of unknown keys; nothing at all is an empty mapping."""
    fields = {name: field for name, field in section.model_fields.items() if name != "platform"}
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise InvalidConfig(
            f"{prefix.rstrip('.') or 'the whole file'}: {shown(node)} is not allowed; "
            f"it must be a mapping of {', '.join(fields)}"
        )
    checked: dict[str, Any] = {}
    for key, value in node.items():
        name = str(key)  # YAML takes a bare 1 or yes for a number or a boolean
        if name not in fields:
            raise InvalidConfig(f"{prefix}{name}: no such key; {_hint(name, list(fields), prefix)}")
        inner = _section_of(fields[name])
        checked[name] = _checked(value, inner, f"{prefix}{name}.") if inner else value
    return checked


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


# Fields and words


def _section_of(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _field(names: Iterable[Any]) -> FieldInfo:
    """The field at a path of names; an index into a list, at the end, stays with the list."""
    section: type[BaseModel] | None = Settings
    for name in names:
        if section is not None:
            field = section.model_fields[name]
            section = _section_of(field)
    return field


def _complaints(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        yield refusal(key, detail["input"], _field(detail["loc"]))


def _hint(name: str, known: list[str], prefix: str = "") -> str:
    """The key that was meant: one that looks like it here, or has its name in another section."""
    close = [prefix + key for key in difflib.get_close_matches(name, known, n=1)]
    meant = close or [key for key in VARIABLES.values() if key.endswith(f".{name}")]
    if meant:
        return f"did you mean {meant[0]}?"
    return f"the known ones are {', '.join(prefix + key for key in known)}"

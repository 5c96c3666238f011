"""What values a setting or a field of a job may have: each range is written here, once.

Every type is strict: `True` is no number, and neither is `"3"`. Text from the environment is
parsed by `worker.config` before it meets these types. The description of a type completes the
sentence "it must be …", so that `valid_values` can tell a user what would have been right.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo

__all__ = [
    "BucketName",
    "CfgFilterTopK",
    "CfgScale",
    "ChunkSize",
    "Device",
    "Dtype",
    "Endpoint",
    "Fraction",
    "Generation",
    "HandlerMode",
    "KeyPrefix",
    "MaxTokens",
    "Output",
    "OutputFormat",
    "PositiveInt",
    "Region",
    "RemoteTimeout",
    "RepositoryId",
    "Seconds",
    "Secret",
    "Seed",
    "Switch",
    "Temperature",
    "Text",
    "TopP",
    "UrlExpiry",
    "WeightsFilename",
    "refusal",
    "shown",
    "valid_values",
]

REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
WEIGHTS_SUFFIXES = (".safetensors", ".safetensors.index.json", ".pth", ".pt", ".bin")

HIDDEN = "hidden"  # notes a type whose values are repeated in no message
_SHOWN = 80  # characters of a bad value that a message repeats


def _whole(low: int, high: int) -> Any:
    return Field(strict=True, ge=low, le=high, description=f"a whole number from {low} to {high}")


def _number(low: float, high: float) -> Any:
    return Field(
        strict=True,
        ge=low,
        le=high,
        allow_inf_nan=False,
        description=f"a number from {low:g} to {high:g}",
    )


def _matching(pattern: str, description: str) -> Any:
    # \z, not $: the latter lets a newline through at the end
    return Field(strict=True, pattern=rf"\A(?:{pattern})\z", description=description)


Switch = Annotated[bool, Field(strict=True, description="true or false")]
Text = Annotated[str, Field(strict=True, min_length=1, description="text, not empty")]
PositiveInt = Annotated[int, Field(strict=True, ge=1, description="a whole number, 1 or more")]
Fraction = Annotated[
    float,
    Field(
        strict=True,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="a number above 0, at most 1",
    ),
]

# Of a job, and of the defaults that a job may leave to the settings
ChunkSize = Annotated[int, _whole(40, 500)]  # characters
Seed = Annotated[int, _whole(0, 2**32 - 1)]
CfgScale = Annotated[float, _number(0, 10)]
Temperature = Annotated[float, _number(0, 2)]
TopP = Fraction
CfgFilterTopK = Annotated[int, _whole(1, 1024)]  # 1024 codes in a codebook
MaxTokens = Annotated[int, _whole(1, 3056)]  # frames: 3072 positions - BOS - 15 of delay
OutputFormat = Literal["wav", "flac", "mp3", "opus", "aac", "pcm"]
Output = Literal["auto", "base64", "s3"]

# Of the worker
RemoteTimeout = Annotated[float, _number(1, 120)]  # seconds
Device = Annotated[str, _matching(r"auto|cpu|cuda(:[0-9]{1,3})?", "auto, cpu, cuda or cuda:N")]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Generation = Annotated[
    Literal["april", "0626"],
    # YAML reads a bare 0626 as an octal number, and the complaint is then about "406"
    Field(description='april or "0626" (in YAML with the quotes)'),
]
RepositoryId = Annotated[str, _matching(REPOSITORY, "a repository, as org/name")]
WeightsFilename = Annotated[
    str,
    _matching(
        r"[^/\\]+(" + "|".join(suffix.replace(".", r"\.") for suffix in WEIGHTS_SUFFIXES) + ")",
        f"a file name that ends in {', '.join(WEIGHTS_SUFFIXES[:-1])} or {WEIGHTS_SUFFIXES[-1]}",
    ),
]
Seconds = Annotated[
    float,
    Field(strict=True, gt=0, allow_inf_nan=False, description="a number of seconds above 0"),
]
HandlerMode = Literal["job", "stream"]
# Of a store of results
Endpoint = Annotated[
    str,
    _matching(
        # Without a user, a query or a fragment: what stands there would be logged, or lost.
        r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?",
        "an address, as https://host",
    ),
    HIDDEN,
]
# No ARN: some of those would send the file to another host.
BucketName = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", "a bucket's name, 3 to 63 characters")
]
Region = Annotated[str, _matching(r"[A-Za-z0-9-]{1,40}", "a region, as eu-west-1")]
Secret = Annotated[
    SecretStr,
    Field(strict=True, min_length=1, description="text, not empty"),
]
KeyPrefix = Annotated[
    str,
    _matching(
        r"([A-Za-z0-9_-][A-Za-z0-9._-]*/?)*", "names of letters, digits and . _ - with / between"
    ),
]
UrlExpiry = Annotated[int, _whole(1, 7 * 24 * 3600)]  # seconds; the protocol allows a week


def valid_values(annotation: Any) -> str:
    """The values that a type allows, in words that complete "it must be …".

    Args:
        annotation: A type of this module, or `T | None`, `Literal[...]`, `Path`, a sequence or a
            pydantic model.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        described = [note.description for note in arguments[1:] if hasattr(note, "description")]
        return described[0] if described else valid_values(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(valid_values(argument) for argument in arguments)
    if origin is Literal:
        *head, last = [str(argument) for argument in arguments]
        return f"{', '.join(head)} or {last}" if head else last
    if origin in (tuple, list):
        return f"a list, each item {valid_values(arguments[0])}"
    if fields := getattr(annotation, "model_fields", None):
        return f"a mapping with some of the keys {', '.join(sorted(fields))}"
    return {type(None): "null"}.get(annotation, f"a {annotation.__name__.lower()}")


def shown(value: Any) -> str:
    """A value on one line, in the words of YAML and JSON, cut when it is long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def refusal(name: str, given: Any, field: FieldInfo) -> str:
    """One line for a value that is not allowed: its name, what was given, and what is valid."""
    valid = field.description or valid_values(field.annotation)
    is_hidden = any(_is_hidden(note) for note in (field.annotation, *field.metadata))
    what = "what was given" if is_hidden else shown(given)
    return f"{name}: {what} is not allowed; it must be {valid}"


def _is_hidden(note: Any) -> bool:
    return note in (SecretStr, HIDDEN) or any(_is_hidden(inner) for inner in get_args(note))

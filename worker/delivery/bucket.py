"""Which bucket is meant: the one of the settings, or the one that a job brings as `s3Config`.

A job's own bucket makes this worker connect to wherever the job says, from within the worker's
network. So its address must be https and must not resolve to an address of a private network. A
name that resolves differently later gains nothing: TLS holds the host to its name before a byte
of the request is sent.
"""

from __future__ import annotations

import difflib
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.alias_generators import to_camel

from worker.errors import InvalidConfig, InvalidInput
from worker.limits import BucketName, Endpoint, Region, Secret, valid_values
from worker.remote import is_public
from worker.settings import BucketSettings

FIELD = "s3Config"
DEFAULT_REGION = "us-east-1"  # what stores expect that have no regions

# What must be set for there to be a bucket; `worker.config` has the same names.
_REQUIRED = {
    "endpoint_url": "BUCKET_ENDPOINT_URL",
    "name": "BUCKET_NAME",
    "access_key_id": "BUCKET_ACCESS_KEY_ID",
    "secret_access_key": "BUCKET_SECRET_ACCESS_KEY",
}
_RUNPOD_HOST = re.compile(r"s3api-([a-z0-9-]+)\.runpod\.io")
_AWS_HOST = re.compile(r"s3[.-](?:dualstack\.)?([a-z]+-[a-z0-9-]+-[0-9])\.amazonaws\.com(?:\.cn)?")
# Some stores show an address that begins with the bucket: S3's own, and DigitalOcean's.
_BEHIND_BUCKET = re.compile(r"s3[.-].+|[a-z0-9]+\.digitaloceanspaces\.com")


@dataclass(frozen=True)
class Bucket:
    """A bucket, and what it takes to write to it.

    Attributes:
        endpoint_url: of the store, without the bucket.
        has_urls: whether the store signs addresses; RunPod's volumes do not.
        prefix: what all keys begin with.
        url_expiry_s: seconds for which a signed address works.
    """

    endpoint_url: str
    name: str
    region: str
    access_key_id: SecretStr
    secret_access_key: SecretStr
    prefix: str = ""
    url_expiry_s: int = BucketSettings().url_expiry_s

    @property
    def has_urls(self) -> bool:
        return _RUNPOD_HOST.fullmatch(_host(self.endpoint_url)) is None


class JobBucket(BaseModel):
    """`s3Config`, as RunPod documents it, and the region."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel)

    access_id: Secret
    access_secret: Secret
    bucket_name: BucketName
    endpoint_url: Endpoint
    region: Region | None = None


def bucket_of_settings(settings: BucketSettings) -> Bucket | None:
    """The worker's own bucket, if it has one.

    Raises:
        InvalidConfig: naming the variables that are missing beside those that are set.
    """
    missing = [name for key, name in _REQUIRED.items() if getattr(settings, key) is None]
    if len(missing) == len(_REQUIRED) and not settings.region and not settings.prefix:
        return None
    if missing:
        raise InvalidConfig(
            f"{', '.join(missing)}: not set, while other variables of the bucket are; a bucket "
            f"needs {', '.join(_REQUIRED.values())} (delivery.bucket), or none of them"
        )
    assert settings.endpoint_url and settings.name
    assert settings.access_key_id and settings.secret_access_key
    if not _has_valid_port(settings.endpoint_url):
        raise InvalidConfig("BUCKET_ENDPOINT_URL: its port is not one of 1 to 65535")
    return Bucket(
        _endpoint(settings.endpoint_url, settings.name),
        settings.name,
        settings.region or region_of(settings.endpoint_url, settings.name),
        settings.access_key_id,
        settings.secret_access_key,
        settings.prefix,
        settings.url_expiry_s,
    )


def bucket_of_job(raw: object, settings: BucketSettings, allow_private: bool) -> Bucket:
    """The bucket that a job brings; prefix and expiry are the worker's.

    Args:
        raw: the job's `s3Config`.
        settings: of the worker's own bucket.
        allow_private: whether it may lie in a private network, or be reached without https.

    Raises:
        InvalidInput: naming the fields at fault. What was given is never repeated.
    """
    given = _checked(raw)
    endpoint = _endpoint(given.endpoint_url, given.bucket_name)
    if not _has_valid_port(endpoint):
        raise InvalidInput(f"{FIELD}: the port of endpointUrl is not one of 1 to 65535")
    if not allow_private:
        _check_public(endpoint)
    return Bucket(
        endpoint,
        given.bucket_name,
        given.region or region_of(given.endpoint_url, given.bucket_name),
        given.access_id,
        given.access_secret,
        settings.prefix,
        settings.url_expiry_s,
    )


def region_of(endpoint_url: str, bucket: str) -> str:
    """The region that a store's address tells; RunPod writes its regions in capitals."""
    host = _host(_endpoint(endpoint_url, bucket))
    if runpod := _RUNPOD_HOST.fullmatch(host):
        return runpod[1].upper()
    aws = _AWS_HOST.fullmatch(host)
    return aws[1] if aws else DEFAULT_REGION


def _endpoint(url: str, bucket: str) -> str:
    """The address without the bucket, which would else end up in it twice."""
    scheme, _, rest = url.rstrip("/").partition("://")
    behind = rest.removeprefix(f"{bucket}.")
    if behind != rest and _BEHIND_BUCKET.fullmatch(_host(f"{scheme}://{behind}")):
        rest = behind
    return f"{scheme}://{rest}"


def _checked(raw: object) -> JobBucket:
    if not isinstance(raw, dict):
        raise InvalidInput(f"{FIELD} must be an object with {', '.join(_fields())}")
    for name in raw:
        if name not in _fields():
            close = difflib.get_close_matches(str(name), _fields(), n=1)
            hint = f"did you mean {close[0]}?" if close else f"they are {', '.join(_fields())}"
            raise InvalidInput(f"{FIELD} has a field that there is not; {hint}")
    try:
        return JobBucket(**{name: value for name, value in raw.items() if value is not None})
    except ValidationError as error:
        # Without the cause, which would show what was given wherever it is printed.
        raise InvalidInput(f"{FIELD}: {'; '.join(map(_complaint, error.errors()))}") from None


def _fields() -> dict[str, str]:
    """The names of the fields, and what they may hold."""
    fields = JobBucket.model_fields.values()
    return {
        str(field.alias): field.description or valid_values(field.annotation) for field in fields
    }


def _complaint(detail: Any) -> str:
    name = str(detail["loc"][0])
    found = "is missing" if detail["type"] == "missing" else "has a value that is not allowed"
    return f"{name} {found}; it must be {_fields()[name]}"


def _check_public(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme != "https":
        raise InvalidInput(f"{FIELD}: endpointUrl must begin with https://")
    assert parts.hostname, "an endpoint has a host"
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    # The same words for a name that is unknown and one that is private: they tell nothing of what
    # there is in the worker's network.
    if not found or not all(is_public(str(entry[4][0])) for entry in found):
        raise InvalidInput(
            f"{FIELD}: the host of endpointUrl has no public address; a store in a private network "
            "must be allowed by the worker's settings (delivery.allow_private_endpoints)"
        )


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _has_valid_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False

"""Which bucket is used, and what a mistake in naming one is answered with."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from tests.delivery.fakes import KEY_ID, SECRET, bucket_at
from worker.config import VARIABLES, load_settings
from worker.delivery import Bucket, bucket_of_job, bucket_of_settings
from worker.delivery.bucket import _REQUIRED
from worker.errors import InvalidConfig, InvalidInput
from worker.settings import BucketSettings
from worker.startup import start

WHOLE = {
    "BUCKET_ENDPOINT_URL": "http://10.0.0.7:9000/s3",
    "BUCKET_NAME": "speech",
    "BUCKET_ACCESS_KEY_ID": KEY_ID,
    "BUCKET_SECRET_ACCESS_KEY": SECRET,
}
GIVEN = {
    "accessId": KEY_ID,
    "accessSecret": SECRET,
    "bucketName": "speech",
    "endpointUrl": "https://store.example",
}


def of_settings(environ: Mapping[str, str]) -> Bucket | None:
    return bucket_of_settings(load_settings(environ).delivery.bucket)


def of_job(raw: Any, allow_private: bool = True) -> Bucket:
    return bucket_of_job(raw, BucketSettings(prefix="all/", url_expiry_s=60), allow_private)


def complaint(raw: Any, allow_private: bool = True) -> str:
    """What a job's bucket is refused with: one line without anything that was given."""
    with pytest.raises(InvalidInput) as caught:
        of_job(raw, allow_private)
    message = caught.value.message
    assert message.startswith("s3Config")
    assert "\n" not in message
    for private in (KEY_ID, SECRET, "store.example", "10.0.0.7"):
        assert private not in message
    return message


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the names of hosts resolve to."""
    known: dict[str, list[str]] = {}

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        if host not in known:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


# The worker's own


def test_a_worker_has_the_bucket_that_its_variables_name() -> None:
    bucket = of_settings(
        {**WHOLE, "BUCKET_REGION": "r-1", "BUCKET_PREFIX": "a/b", "BUCKET_URL_EXPIRY_S": "60"}
    )
    assert bucket is not None
    assert (bucket.endpoint_url, bucket.name) == ("http://10.0.0.7:9000/s3", "speech")
    assert (bucket.region, bucket.prefix, bucket.url_expiry_s) == ("r-1", "a/b", 60)
    assert bucket.access_key_id.get_secret_value() == KEY_ID
    assert bucket.secret_access_key.get_secret_value() == SECRET


def test_a_worker_without_those_variables_has_none() -> None:
    assert of_settings({}) is None
    assert of_settings({"BUCKET_URL_EXPIRY_S": "60"}) is None


@pytest.mark.parametrize("left_out", WHOLE)
def test_half_a_bucket_stops_the_start_and_the_missing_variable_is_named(left_out: str) -> None:
    environ = {name: value for name, value in WHOLE.items() if name != left_out}
    with pytest.raises(InvalidConfig) as caught:
        start(load_settings(environ))
    assert caught.value.message.startswith(f"{left_out}: not set")
    assert "\n" not in caught.value.message
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("alone", ["BUCKET_REGION", "BUCKET_PREFIX"])
def test_who_names_a_region_or_a_prefix_only_is_told_what_else_it_takes(alone: str) -> None:
    with pytest.raises(InvalidConfig, match=", ".join(WHOLE)):
        of_settings({alone: "speech"})


def test_the_variables_that_are_asked_for_are_those_that_are_read() -> None:
    named = {f"delivery.bucket.{key}": variable for key, variable in _REQUIRED.items()}
    assert named.items() <= {key: variable for variable, key in VARIABLES.items()}.items()


@pytest.mark.parametrize(
    "url", ["store.example", "ftp://store", "https://me:pw@store", "https://store?x=1", "https://"]
)
def test_an_address_that_is_none_stops_the_start_and_is_not_repeated(url: str) -> None:
    with pytest.raises(InvalidConfig, match="an address, as https://host") as caught:
        load_settings({**WHOLE, "BUCKET_ENDPOINT_URL": url})
    assert "me:pw" not in caught.value.message
    assert caught.value.message.startswith("BUCKET_ENDPOINT_URL: ")


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_is_none_stops_the_start(port: str) -> None:
    with pytest.raises(InvalidConfig, match="BUCKET_ENDPOINT_URL: its port"):
        of_settings({**WHOLE, "BUCKET_ENDPOINT_URL": f"https://store:{port}"})


def test_secrets_are_never_printed() -> None:
    settings = load_settings(WHOLE)
    for shown in (settings, of_settings(WHOLE), of_job(GIVEN), settings.model_dump()):
        for secret in (KEY_ID, SECRET):
            assert secret not in f"{shown} {shown!r}"
    assert SECRET not in settings.model_dump_json()


def test_a_secret_in_the_file_that_is_no_text_is_not_repeated(tmp_path: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("delivery: {bucket: {secret_access_key: 8675309}}")
    with pytest.raises(InvalidConfig, match="secret_access_key: what was given") as caught:
        load_settings({}, file)
    assert "8675309" not in str(caught.value)


# A job's own


def test_a_job_may_bring_a_bucket_and_shares_prefix_and_expiry_with_the_worker() -> None:
    bucket = of_job({**GIVEN, "region": "eu-1"})
    assert bucket == Bucket(
        "https://store.example", "speech", "eu-1", bucket.access_key_id, bucket.secret_access_key,
        "all/", 60,
    )  # fmt: skip
    assert bucket.secret_access_key.get_secret_value() == SECRET


@pytest.mark.parametrize("field", GIVEN)
def test_a_field_of_a_job_s_bucket_that_is_missing_is_named(field: str) -> None:
    without = {name: value for name, value in GIVEN.items() if name != field}
    for raw in (without, {**without, field: None}):
        assert f"{field} is missing" in complaint(raw)


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("accessId", 5, "text, not empty"),
        ("accessSecret", "", "text, not empty"),
        ("bucketName", "a/b", "a bucket's name"),
        ("bucketName", "..", "a bucket's name"),
        ("bucketName", "arn:aws:s3:eu-west-1:1:accesspoint/x", "a bucket's name"),
        ("endpointUrl", "store.example", "an address, as https://host"),
        ("endpointUrl", "https://me:pw@store.example", "an address"),
        ("endpointUrl", "https://store.example/?x", "an address"),
        ("endpointUrl", "https://store.example\n", "an address"),
        ("endpointUrl", 5, "an address"),
        ("region", "eu west", "a region, as eu-west-1"),
    ],
)
def test_a_bad_field_of_a_job_s_bucket_is_named_with_what_it_may_hold(
    field: str, value: Any, valid: str
) -> None:
    message = complaint({**GIVEN, field: value})
    assert f"{field} has a value that is not allowed; it must be {valid}" in message


def test_a_misspelt_field_is_answered_with_the_one_that_was_meant() -> None:
    assert "did you mean endpointUrl?" in complaint({**GIVEN, "endpointURL": "x"})
    assert "they are accessId, accessSecret" in complaint({**GIVEN, SECRET: "x"})


@pytest.mark.parametrize("raw", ["text", [], 5, True])
def test_a_bucket_that_is_no_object_is_refused(raw: Any) -> None:
    assert "must be an object with accessId" in complaint(raw)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "10.0.0.7", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "[::1]", "[fe80::1]", "[fc00::1]", "[::ffff:127.0.0.1]", "2130706433",
        "0x7f.1", "localhost",
    ],
)  # fmt: skip
def test_a_job_cannot_reach_into_the_worker_s_own_network(host: str) -> None:
    assert "no public address" in complaint({**GIVEN, "endpointUrl": f"https://{host}"}, False)


def test_a_name_that_is_partly_private_is_refused(names: dict[str, list[str]]) -> None:
    names["store.example"] = ["93.184.215.14", "10.0.0.7"]
    assert "no public address" in complaint(GIVEN, False)


def test_an_unknown_name_is_refused_in_the_same_words_as_a_private_one(
    names: dict[str, list[str]],
) -> None:
    unknown = complaint(GIVEN, False)
    names["store.example"] = ["10.0.0.7"]
    assert complaint(GIVEN, False) == unknown


def test_a_name_is_looked_at_without_the_bucket_that_it_began_with(
    names: dict[str, list[str]],
) -> None:
    names["speech.s3.lan"] = ["93.184.215.14"]
    names["s3.lan"] = ["10.0.0.7"]
    refused = complaint({**GIVEN, "endpointUrl": "https://speech.s3.lan"}, False)
    assert "no public address" in refused


def test_a_public_store_by_https_is_accepted_and_without_https_refused(
    names: dict[str, list[str]],
) -> None:
    names["store.example"] = ["93.184.215.14"]
    assert of_job(GIVEN, allow_private=False).endpoint_url == "https://store.example"
    plain = {**GIVEN, "endpointUrl": "http://store.example"}
    assert "must begin with https://" in complaint(plain, False)


def test_the_worker_s_settings_may_allow_a_private_store() -> None:
    local = {**GIVEN, "endpointUrl": "http://127.0.0.1:9000/"}
    assert of_job(local, allow_private=True).endpoint_url == "http://127.0.0.1:9000"
    assert "port of endpointUrl" in complaint({**GIVEN, "endpointUrl": "https://h:70000"})


# What an address tells


@pytest.mark.parametrize(
    ("url", "endpoint", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", None, "eu-west-1"),
        ("https://s3.amazonaws.com", None, "us-east-1"),
        ("https://speech.s3.us-west-2.amazonaws.com", "https://s3.us-west-2.amazonaws.com",
         "us-west-2"),
        ("https://speech.ams3.digitaloceanspaces.com", "https://ams3.digitaloceanspaces.com",
         "us-east-1"),
        ("https://s3api-eu-ro-1.runpod.io/", "https://s3api-eu-ro-1.runpod.io", "EU-RO-1"),
        ("https://speech.example:9000", None, "us-east-1"),  # a host that happens to be called so
    ],
)  # fmt: skip
def test_region_and_store_are_found_in_the_usual_addresses(
    url: str, endpoint: str | None, region: str
) -> None:
    bucket = of_settings({**WHOLE, "BUCKET_ENDPOINT_URL": url})
    assert bucket is not None
    assert (bucket.endpoint_url, bucket.region) == (endpoint or url, region)


@pytest.mark.parametrize(
    ("url", "signs"),
    [
        ("https://s3api-eu-ro-1.runpod.io", False),
        ("https://S3API-us-ks-2.runpod.io/", False),
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("https://s3api-x.runpod.io.example", True),
    ],
)
def test_only_runpod_s_volumes_sign_no_addresses(url: str, signs: bool) -> None:
    assert bucket_at(url).has_urls is signs


def test_a_job_s_bucket_is_json_as_it_stands_in_the_readme() -> None:
    assert of_job(json.loads(json.dumps(GIVEN))).name == "speech"

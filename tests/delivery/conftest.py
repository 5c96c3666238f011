"""A real S3 API over HTTP, in which there is one bucket and one user who may write to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.delivery.fakes import bucket_at
from worker.delivery import Bucket

MAY_WRITE = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}


@dataclass(frozen=True)
class S3:
    """A store, and the keys of its user."""

    url: str
    key_id: str
    secret: str
    client: Any  # of that user

    def bucket(self, name: str = "speech", key_id: str = "", secret: str = "") -> Bucket:
        return bucket_at(self.url, name, key_id or self.key_id, secret or self.secret)

    def check_keys(self, of_every_request: bool) -> None:
        """Whether the store looks at keys; addresses that are signed it cannot check at all."""
        after = b"0" if of_every_request else b"inf"
        httpx.post(f"{self.url}/moto-api/reset-auth", content=after).raise_for_status()

    def stored(self, key: str) -> dict[str, Any]:
        """What lies there: `Body`, `ContentType`, `Metadata`."""
        return dict(self.client.get_object(Bucket="speech", Key=key))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """The store; see `s3`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    anyone = boto3.session.Session("any", "any", region_name="us-east-1")
    iam = anyone.client("iam", endpoint_url=url)
    iam.create_user(UserName="worker")
    iam.put_user_policy(UserName="worker", PolicyName="p", PolicyDocument=json.dumps(MAY_WRITE))
    keys = iam.create_access_key(UserName="worker")["AccessKey"]
    anyone.client("s3", endpoint_url=url).create_bucket(Bucket="speech")
    pair = keys["AccessKeyId"], keys["SecretAccessKey"]
    user = boto3.session.Session(*pair, region_name="us-east-1")
    yield S3(url, *pair, user.client("s3", endpoint_url=url))
    server.stop()


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    """The store, which checks keys while uploads are tried."""
    s3_server.check_keys(True)
    yield s3_server
    s3_server.check_keys(False)

"""Files to an S3 bucket: tried again where that may help, and never for longer than is bearable.

Importing this imports boto3. What is told of a failure holds no host, path or key; what exactly
happened is the cause of the exception, for the log.
"""

from __future__ import annotations

import contextvars
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    SSLError,
)
from botocore.loaders import create_loader

from worker.audio.encode import EncodedAudio
from worker.delivery.bucket import Bucket
from worker.errors import UploadFailed, UploadRefused

logger = logging.getLogger(__name__)

# Remembers what S3 is: a client then takes 25 ms to make and not 200, during which no step decodes.
_LOADER = create_loader()

_PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}
_WRONG_KEYS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraint"}


@dataclass(frozen=True)
class Patience:
    """How long a store is waited for.

    Attributes:
        connect_s: seconds for a connection.
        read_s: seconds in which a connection must show some life.
        total_s: seconds for everything together; a file of 10,000 characters' speech has some
            60 MB, which takes 10 s at 50 Mbit/s.
        attempts: at most.
        pause_s: seconds before the second attempt, twice as many before each further one.
    """

    connect_s: float = 5.0
    read_s: float = 20.0
    total_s: float = 90.0
    attempts: int = 4
    pause_s: float = 0.5


class S3Store:
    """One bucket. May be used by many threads at once."""

    def __init__(self, bucket: Bucket, patience: Patience | None = None) -> None:
        """Makes a client; nothing is sent yet.

        Raises:
            UploadRefused: if there can be no client for that bucket.
        """
        self._bucket, self._patience = bucket, patience or Patience()
        with _told():
            self._client = _client(bucket, self._patience)

    def put(self, key: str, audio: EncodedAudio, metadata: Mapping[str, str]) -> str | None:
        """See `Store`."""
        # In a thread that can be left alone: a store that takes or sends a byte now and then keeps
        # every timeout of a socket from passing.
        outcome: Future[str | None] = Future()
        work = partial(self._put, key, audio, metadata)
        threading.Thread(
            target=contextvars.copy_context().run,  # its lines of the log belong to the job, too
            args=(_settle, outcome, work),
            name="upload",
            daemon=True,
        ).start()
        wait([outcome], self._patience.total_s)
        if not outcome.done():
            raise UploadFailed(f"the upload to S3 was not done within {self._patience.total_s:g} s")
        return outcome.result()

    def _put(self, key: str, audio: EncodedAudio, metadata: Mapping[str, str]) -> str | None:
        until = time.monotonic() + self._patience.total_s
        for pause in self._pauses():
            try:
                return self._put_once(key, audio, metadata)
            except UploadRefused:
                raise
            except UploadFailed as error:
                if pause is None or time.monotonic() + pause > until:
                    raise
                logger.info("%s: again in %.1f s, after %r", key, pause, error.__cause__)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _pauses(self) -> Iterator[float | None]:
        """Seconds after each attempt; `None` after the last. Random, so that workers spread."""
        for attempt in range(self._patience.attempts - 1):
            yield self._patience.pause_s * 2**attempt * random.uniform(0.75, 1.25)
        yield None

    def _put_once(self, key: str, audio: EncodedAudio, metadata: Mapping[str, str]) -> str | None:
        place = {"Bucket": self._bucket.name, "Key": key}
        with _told():
            stored = self._client.put_object(
                **place, Body=audio.data, ContentType=audio.mime_type, Metadata=dict(metadata)
            )
            # Half an answer has none, nor has that of a web server which takes anything.
            if not stored.get("ETag"):
                raise UploadFailed("the upload to S3 failed: the store did not confirm it")
            if not self._bucket.has_urls:
                return None
            return str(
                self._client.generate_presigned_url(
                    "get_object", Params=place, ExpiresIn=self._bucket.url_expiry_s
                )
            )


def _client(bucket: Bucket, patience: Patience) -> Any:
    core = botocore.session.Session()
    core.register_component("data_loader", _LOADER)
    session = boto3.session.Session(  # its own: the default one cannot be shared between threads
        botocore_session=core,
        aws_access_key_id=bucket.access_key_id.get_secret_value(),
        aws_secret_access_key=bucket.secret_access_key.get_secret_value(),
        region_name=bucket.region,
    )
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"total_max_attempts": 1},  # `_put` tries again, and knows when to stop
        signature_version="s3v4",
        s3={"addressing_style": "path"},  # which every store knows
        # Stores that are not Amazon's refuse the checksums that are otherwise added.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return session.client("s3", endpoint_url=bucket.endpoint_url, config=config)


@contextmanager
def _told() -> Iterator[None]:
    """Tells foreign errors in our words: worth another attempt, or not."""
    try:
        yield
    except ClientError as error:
        raise _answered(error) from error
    except SSLError as error:
        raise UploadRefused("the upload to S3 failed: the store's certificate is bad") from error
    except (HTTPClientError, ConnectionError) as error:
        raise UploadFailed("the upload to S3 failed: the store did not answer") from error
    except (BotoCoreError, ValueError) as error:
        raise UploadRefused("the upload to S3 failed: it cannot be done as configured") from error


def _answered(error: ClientError) -> UploadFailed:
    """What a store said, as one of our errors."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if status >= 500 or status in (408, 429) or code in _PASSING:
        return UploadFailed(f"the upload to S3 failed: the store answered with status {status}")
    reason = f"the store refused the file with status {status}"
    if code == "NoSuchBucket":
        reason = "there is no such bucket"
    elif code in _OTHER_REGION:
        reason = "the bucket is in another region"
    elif code in _WRONG_KEYS or status in (401, 403):
        reason = "the store refuses the access keys"
    return UploadRefused(f"the upload to S3 failed: {reason}")


def _settle(outcome: Future[str | None], work: Callable[[], str | None]) -> None:
    try:
        outcome.set_result(work())
    except Exception as error:  # noqa: BLE001 - raised again where the outcome is waited for
        outcome.set_exception(error)

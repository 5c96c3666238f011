"""Which way a job's audio takes, and what is tried when that way is closed.

`auto`    in the answer where it fits; else to the bucket; else in the answer as a smaller file
`base64`  in the answer, as it is, or not at all
`s3`      to the bucket; in the answer where the bucket fails

The audio is there by then, and may have taken minutes: it is given up only when nothing is left.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from worker.audio.encode import EncodedAudio
from worker.delivery.bucket import Bucket, bucket_of_job
from worker.delivery.keys import key_of
from worker.delivery.parcel import Delivered, Parcel, Route, Store
from worker.delivery.room import Room, base64_size, encoded_size, megabytes, room_for
from worker.errors import InvalidInput, ResultTooLarge, UploadFailed, WorkerError
from worker.limits import Output
from worker.settings import BucketSettings

logger = logging.getLogger(__name__)

# What a format may be replaced with, in the order in which it is tried. flac loses nothing; of the
# others, which are of one size for speech, mp3 is the one that everything plays.
SMALLER = {
    "wav": ("flac", "mp3", "opus"),
    "pcm": ("flac", "mp3", "opus"),
    "flac": ("mp3", "opus"),
    "aac": ("mp3", "opus"),
    "mp3": ("opus",),
}
MAX_METADATA = 512  # characters of one value; a store takes 2 kB of all together

Connect = Callable[[Bucket], Store]


def connect(bucket: Bucket) -> Store:
    """A connection to a bucket's store."""
    # boto3 takes half a second to import, which a cold start should not wait for.
    from worker.delivery.s3 import S3Store

    return S3Store(bucket)


class FittingDelivery:
    """Delivers by a way that is wide enough."""

    def __init__(
        self,
        bucket: Bucket | None = None,
        settings: BucketSettings | None = None,
        allow_private: bool = False,
        connect: Connect = connect,
    ) -> None:
        """Prepares a delivery; nothing is connected yet.

        Args:
            bucket: the worker's own.
            settings: prefix and expiry, which also hold for the buckets of jobs.
            allow_private: whether those may lie in a private network, or do without https.
            connect: opens a store.
        """
        self._bucket, self._connect = bucket, connect
        self._settings, self._allow_private = settings or BucketSettings(), allow_private
        self._own_store: Store | None = None
        self._lock = threading.Lock()

    def route(self, output: Output, s3_config: object) -> Route:
        """See `Delivery`. A job's own bucket wins over the worker's."""
        bucket = self._bucket
        if s3_config is not None:
            bucket = bucket_of_job(s3_config, self._settings, self._allow_private)
        if output == "s3" and bucket is None:
            raise InvalidInput(
                "output is 's3', and there is no bucket: the worker has none, and the job brings "
                "no s3Config; send one beside the input, or use output auto or base64"
            )
        return Route(output, None if output == "base64" else bucket)

    def deliver(self, parcel: Parcel, route: Route) -> Delivered:
        """See `Delivery`."""
        room = room_for(parcel.job_id)
        if route.output != "s3" and (delivered := _in_answer(parcel, parcel.audio, room)):
            return delivered
        failure: WorkerError = _too_large(parcel, room)
        warnings: list[str] = []
        if route.bucket is not None:
            try:
                return self._in_bucket(parcel, route.bucket)
            except UploadFailed as error:
                logger.warning("job %s: %s (%r)", parcel.job_id, error, error.__cause__)
                warnings = [f"{error.message}; the audio is in the answer instead"]
                failure = type(error)(f"{error.message}; {_too_large(parcel, room).message}")
                failure.__cause__ = error.__cause__
        for audio in _candidates(parcel, route):
            told = [*warnings, *_replaced(parcel, audio, room)]
            if delivered := _in_answer(parcel, audio, room, told):
                return delivered
        raise failure

    def _in_bucket(self, parcel: Parcel, bucket: Bucket) -> Delivered:
        key = key_of(bucket.prefix, parcel.job_id, parcel.audio.format)
        url = self._store(bucket).put(key, parcel.audio, _metadata(parcel))
        where = {"audio_key": key} if url is None else {"audio_url": url, "audio_key": key}
        answer = {**where, **parcel.describe(parcel.audio, ())}
        encoded_size(answer)
        return Delivered(answer, parcel.audio)

    def _store(self, bucket: Bucket) -> Store:
        """The worker's own is opened once; those of jobs are not kept, nor are their keys."""
        if bucket is not self._bucket:
            return self._connect(bucket)
        with self._lock:
            if self._own_store is None:
                self._own_store = self._connect(bucket)
            return self._own_store


def _in_answer(
    parcel: Parcel, audio: EncodedAudio, room: Room, warnings: Sequence[str] = ()
) -> Delivered | None:
    """The answer with the audio in it, if there is room."""
    answer: dict[str, object] = {"audio": "", **parcel.describe(audio, warnings)}
    # Base64 needs no escapes: its megabytes are counted before they are made.
    if encoded_size(answer) + base64_size(audio.data) > room.limit:
        return None
    answer["audio"] = base64.b64encode(audio.data).decode("ascii")
    return Delivered(answer, audio)


def _candidates(parcel: Parcel, route: Route) -> Iterator[EncodedAudio]:
    """Files of the speech, each to be tried if those before it are too large."""
    yield parcel.audio
    if parcel.format_is_free and route.output != "base64":
        yield from map(parcel.encode, SMALLER.get(parcel.audio.format, ()))


def _replaced(parcel: Parcel, audio: EncodedAudio, room: Room) -> list[str]:
    """The warning that belongs to a file in another format."""
    asked = parcel.audio.format
    if audio.format == asked:
        return []
    return [
        f"the audio is {audio.format}: as {asked} the answer would have had "
        f"{megabytes(_inline_size(parcel))}, and {room}; name an output_format to have that one "
        "or none"
    ]


def _too_large(parcel: Parcel, room: Room) -> ResultTooLarge:
    return ResultTooLarge(
        f"with {parcel.audio.duration_s:.0f} s of {parcel.audio.format} in base64 the answer has "
        f"{megabytes(_inline_size(parcel))}, and {room}; ask for output s3 (with an s3Config, or "
        "on a worker with a bucket), a smaller output_format (flac, mp3, opus) or a shorter text"
    )


def _inline_size(parcel: Parcel) -> int:
    described = {"audio": "", **parcel.describe(parcel.audio, ())}
    return encoded_size(described) + base64_size(parcel.audio.data)


def _metadata(parcel: Parcel) -> dict[str, str]:
    """What is kept with a file, so that it can be traced without its answer."""
    audio = parcel.audio
    found = {
        "job-id": parcel.job_id,
        "sample-rate": str(audio.sample_rate),
        "duration": f"{audio.duration_s:.3f}",
        "seed": str(parcel.seed),
        "model-fingerprint": parcel.fingerprint,
    }
    # Percent-encoded: metadata are headers, and hold ASCII only.
    return {
        name: quote(value, safe="", errors="backslashreplace")[:MAX_METADATA]
        for name, value in found.items()
    }

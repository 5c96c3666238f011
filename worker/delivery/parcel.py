"""What is delivered, where it is to go, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.audio.encode import EncodedAudio
from worker.delivery.bucket import Bucket
from worker.limits import Output

Answer = dict[str, object]


@dataclass(frozen=True)
class Parcel:
    """One job's finished speech.

    Attributes:
        job_id: of the platform.
        audio: the speech in the format that was asked for.
        encode: the same speech as a file of another format; nothing is generated again.
        format_is_free: whether the format may be another: the job did not name one.
        describe: what the answer says beside the audio: of that file, with these warnings.
        seed: with which it was generated.
        fingerprint: of the weights that spoke.
    """

    job_id: str
    audio: EncodedAudio
    encode: Callable[[str], EncodedAudio]
    format_is_free: bool
    describe: Callable[[EncodedAudio, Sequence[str]], Answer]
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Route:
    """Where a job wants its audio, settled before anything is generated."""

    output: Output
    bucket: Bucket | None = None  # `None`: there is no store to turn to


@dataclass(frozen=True)
class Delivered:
    """The whole answer, ready for JSON, and the file that it is about."""

    answer: Answer
    audio: EncodedAudio


class Delivery(Protocol):
    """Hands audio over. Both methods may take long, and may be called from any thread."""

    def route(self, output: Output, s3_config: object) -> Route:
        """Settles where the audio is to go.

        Args:
            output: as the job asks.
            s3_config: the job's `s3Config` as it came; `None` where it has none.

        Raises:
            InvalidInput: if there is no such way.
        """

    def deliver(self, parcel: Parcel, route: Route) -> Delivered:
        """Hands the audio over.

        Raises:
            ResultTooLarge: if no way is wide enough.
            UploadFailed: if the store did not take it, and it does not fit into the answer.
            EngineError: if it cannot be encoded, or the answer is not JSON.
        """


class Store(Protocol):
    """A place for files."""

    def put(self, key: str, audio: EncodedAudio, metadata: Mapping[str, str]) -> str | None:
        """Stores a file, over the one that may have its key already.

        Args:
            key: the file's name in the store.
            audio: the file.
            metadata: kept with it; ASCII.

        Returns:
            An address from which it can be fetched for some time; `None` where the store has none.

        Raises:
            UploadFailed: if the store did not take it.
        """

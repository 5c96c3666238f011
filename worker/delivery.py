"""How finished audio reaches whoever asked for it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Protocol

from worker.audio.encode import FORMATS, EncodedAudio


class Delivery(Protocol):
    """Hands audio over; returns the fields by which the answer says where it is."""

    def deliver(self, job_id: str, audio: EncodedAudio) -> dict[str, str]:
        """May take long, and may be called from any thread."""


class InlineDelivery:
    """Audio in the answer itself, as base64."""

    def deliver(self, job_id: str, audio: EncodedAudio) -> dict[str, str]:
        return {"audio": base64.b64encode(audio.data).decode("ascii")}


class KeepingDelivery:
    """Delivers through another, and keeps a copy of each file in a folder of this machine."""

    def __init__(self, inner: Delivery, folder: Path) -> None:
        self._inner, self._folder = inner, folder

    def deliver(self, job_id: str, audio: EncodedAudio) -> dict[str, str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in job_id)
        copy = self._folder / (name + FORMATS[audio.format].extension)
        copy.write_bytes(audio.data)
        return self._inner.deliver(job_id, audio)

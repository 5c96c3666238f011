"""A job's audio as the items of a stream.

Each item is posted to `/stream` by itself, and all of them once more as the final output. RunPod
takes 1 MB an item, and far less than hours of audio as an output: where the pieces are too much for
it, they leave the final output, which says so.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from worker.audio.encode import audio_format
from worker.audio.live import LiveEncoder
from worker.delivery.room import Room, encoded_size
from worker.pieces import Piece
from worker.schema import JobResult

Item = dict[str, Any]

ITEM_SIZE = 200  # characters of an item beside its audio, at most


class Stream:
    """One job's items, in order. Joined, their audio is one file."""

    def __init__(self, format: str, sample_rate: int, room: Room) -> None:
        """Begins a stream.

        Args:
            format: of the file.
            sample_rate: of the pieces, in Hz.
            room: what the final output may have.
        """
        self._encoder = LiveEncoder(format, sample_rate)
        self._room = room
        self._format = format
        self._items: list[Item] = []
        self._size = 0  # characters of all items
        self._end_s = 0.0

    async def piece(self, piece: Piece) -> Item:
        """The item of the next piece. Compressed audio comes late: the first may be empty."""
        data = await asyncio.to_thread(self._encoder.push, piece.waveform)
        self._end_s = piece.end_s
        return self._item(data, piece.chunk, piece.start_s, piece.end_s)

    async def rest(self) -> Item | None:
        """The item of what the encoder still held, if that is anything."""
        data = await asyncio.to_thread(self._encoder.finish)
        if not data:
            return None
        return self._item(data, self._items[-1]["chunk"], self._end_s, self._end_s)

    def posted(self) -> None:
        """Says that the last item was posted. The SDK has it in its list for the final output."""
        if self._is_too_much(0):
            for item in self._items:
                item.pop("audio", None)

    def summary(self, result: JobResult) -> Item:
        """The last item: what a job's answer says, without the audio."""
        rate = self._encoder.sample_rate
        item = {
            **result.model_dump(mode="json"),
            "sample_rate": rate,
            "audio_length": round(result.audio_length * rate / result.sample_rate),
            "content_type": audio_format(self._format).mime_type,
            "pieces": len(self._items),
            "aggregated": True,
        }
        if self._is_too_much(encoded_size(item)):
            self._size = self._room.limit + 1
            self.posted()
            item["aggregated"] = False
            item["warnings"] = [*result.warnings, _too_much(self._room)]
        return item

    def _is_too_much(self, beside: int) -> bool:
        return self._size + beside > self._room.limit

    def _item(self, data: bytes, chunk: int, start_s: float, end_s: float) -> Item:
        audio = base64.b64encode(data).decode("ascii")
        self._size += len(audio) + ITEM_SIZE
        item = {
            "index": len(self._items),
            "chunk": chunk,
            "start": round(start_s, 3),
            "end": round(end_s, 3),
            "format": self._format,
            "audio": audio,
        }
        self._items.append(item)
        return item


def _too_much(room: Room) -> str:
    return (
        f"the audio was streamed and is not in the final output: {room}; a compressed "
        "output_format takes less"
    )

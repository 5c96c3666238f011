"""Delivery with a copy for oneself."""

from __future__ import annotations

from pathlib import Path

from worker.delivery.keys import file_name
from worker.delivery.parcel import Delivered, Delivery, Parcel, Route
from worker.limits import Output


class KeepingDelivery:
    """Delivers through another, and keeps a copy of each file in a folder of this machine."""

    def __init__(self, inner: Delivery, folder: Path) -> None:
        self._inner, self._folder = inner, folder

    def route(self, output: Output, s3_config: object) -> Route:
        """See `Delivery`."""
        return self._inner.route(output, s3_config)

    def deliver(self, parcel: Parcel, route: Route) -> Delivered:
        """See `Delivery`."""
        delivered = self._inner.deliver(parcel, route)
        self._folder.mkdir(parents=True, exist_ok=True)
        copy = self._folder / file_name(parcel.job_id, delivered.audio.format)
        copy.write_bytes(delivered.audio.data)
        return delivered

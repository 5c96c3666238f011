"""Which frames are decoded together, and which of their samples are kept.

Knows only lengths; no torch. Frames decoded with `context` frames of their row on both sides, or
with the row's own end there, come out as in a decode of the whole row. Everything here follows
from that: long rows are cut to pieces, short ones padded to the length of their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple


class Window(NamedTuple):
    """A run of frames of one row, and the part of it whose samples are kept."""

    row: int
    start: int  # decoded: frames start … end - 1
    end: int
    first: int  # kept: frames first … last - 1
    last: int

    @property
    def frames(self) -> int:
        """How many are decoded."""
        return self.end - self.start


def plan(
    lengths: Sequence[int], context: int, limit: int | None = None, padding: int | None = None
) -> list[list[Window]]:
    """Batches of windows that keep every frame of every row exactly once.

    The windows of a batch are padded on the right to the length of its first, the longest. What is
    kept of a shorter one ends `context` frames before the padding; the frames after that, whose
    samples depend on the row ending there, come in a window of their own that is never padded.

    Args:
        lengths: Frames of each row; 0 gives no window.
        context: Frames on each side of a frame that its samples depend on.
        limit: At most this many frames in a batch, padding included; at least 2 * context + 1.
        padding: Frames by which a window may be padded; None decodes every window alone.
    """
    windows = [
        window for row, frames in enumerate(lengths) for window in cut(row, frames, context, limit)
    ]
    batches: list[list[Window]] = []
    ends: list[Window] = []
    for batch in _grouped(windows, limit, padding):
        bodies = [window for window in batch if window.frames == batch[0].frames]
        for window in batch[len(bodies) :]:
            body, end = split_end(window, context)
            bodies += body
            ends += end
        batches.append(bodies)
    return batches + list(_grouped(ends, limit, padding if padding is None else 0))


def cut(row: int, frames: int, context: int, limit: int | None) -> list[Window]:
    """The windows of a row: one, or pieces of at most `limit` frames with their context."""
    if limit is None or frames <= limit:
        return [Window(row, 0, frames, 0, frames)] if frames else []
    edges = [*range(0, frames, limit - 2 * context), frames]
    return [
        Window(row, max(0, first - context), min(frames, last + context), first, last)
        for first, last in pairwise(edges)
    ]


def split_end(window: Window, context: int) -> tuple[list[Window], list[Window]]:
    """The part of a window that padding after it does not reach, and the part that it would."""
    safe = min(window.last, window.end - context)
    if safe == window.last:
        return [window], []
    if safe <= window.first:
        return [], [window]
    end = window._replace(start=max(window.start, safe - context), first=safe)
    return [window._replace(last=safe)], [end]


def _grouped(
    windows: Iterable[Window], limit: int | None, padding: int | None
) -> Iterator[list[Window]]:
    """Windows of nearly the same length together, the longest first."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -window.frames):
        if batch and not _joins(window, batch, limit, padding):
            yield from _worth_padding(batch)
            batch = []
        batch.append(window)
    yield from _worth_padding(batch)


def _joins(window: Window, batch: list[Window], limit: int | None, padding: int | None) -> bool:
    longest = batch[0].frames
    fits = limit is None or (len(batch) + 1) * longest <= limit
    return padding is not None and longest - window.frames <= padding and fits


def _worth_padding(batch: list[Window]) -> list[list[Window]]:
    """Two of unequal length are two decodes together, for the end of the shorter, as apart."""
    if len(batch) == 2 and batch[0].frames != batch[1].frames:
        return [[window] for window in batch]
    return [batch] if batch else []

"""One chunk's generation: its frames while they come, and what came of it in the end.

A `Take` lives in one event loop; what it hands to the engine may be called from any thread. It
knows frames and attempts, and nothing of texts and waveforms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.text import Chunk

FIRST_FRAMES = 30  # 0.35 s; the fewest that are handed out while more are still to come
MOST_FRAMES = 344  # 4 s at once; 470 kB as wav in base64, where a stream takes 1 MB a piece
SHORTEST = 0.3  # of the estimated frames: 50 characters a second


@dataclass(frozen=True, eq=False)
class Spoken:
    """One chunk, generated."""

    chunk: Chunk
    codes: Tensor  # [T, C]
    seed: int
    ended: bool  # by the model itself, rather than by its limit
    limit: int  # frames
    unheard: tuple[Spoken, ...] = ()  # anchors whose voices it does not continue

    @property
    def frames(self) -> int:
        """T, its length."""
        return self.codes.shape[0]

    @property
    def lacks_words(self) -> bool:
        """Whether the model ended it sooner than anyone could have said it."""
        return self.ended and self.frames < self.chunk.frames * SHORTEST


class Take:
    """The frames of one chunk on their way to a listener, each handed out once and in order.

    They are held back at first, since an attempt that lacks words can be replaced by another only
    while nothing of it was heard.
    """

    def __init__(self) -> None:
        self.given = 0  # frames handed out
        self._held: list[Tensor] = []  # [t, C] each, of the attempt under way
        self._needed = FIRST_FRAMES
        self._task: asyncio.Task[Spoken] | None = None  # once it is done
        self._changed = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether frames were handed out; they cannot be taken back."""
        return self.given > 0

    def attempt(self, longest: int) -> Callable[[Tensor], None]:
        """Begins an attempt and forgets the one before, of which nothing was handed out.

        Args:
            longest: frames of the longest attempt before. The new one is held back until it is
                longer, and so is the one to be kept.

        Returns:
            What takes the attempt's new frames [t, C]; may be called from any thread.
        """
        assert not self.begun, "what was heard cannot be replaced"
        self._held.clear()
        self._needed = max(FIRST_FRAMES, longest + 1)
        loop = asyncio.get_running_loop()

        def on_codes(codes: Tensor) -> None:
            with suppress(RuntimeError):  # the event loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._receive, codes)

        return on_codes

    def end(self, task: asyncio.Task[Spoken]) -> None:
        """Notes that the chunk's generation is over, however it went."""
        self._task = task
        self._changed.set()

    async def next(self) -> tuple[Tensor, bool]:
        """Waits for frames that are worth handing out.

        Returns:
            [t, C] codes, at most `MOST_FRAMES`, and whether they are the chunk's last. t is 0
            only for the last.

        Raises:
            WorkerError: whatever ended the chunk's generation.
        """
        while self._task is None and self._frames < self._needed:
            self._changed.clear()
            await self._changed.wait()
        codes = self._rest()
        given = codes[:MOST_FRAMES]
        self._held = [codes[MOST_FRAMES:]]
        self._needed = FIRST_FRAMES
        self.given += given.shape[0]
        return given, self._task is not None and not self._frames

    @property
    def _frames(self) -> int:
        return sum(codes.shape[0] for codes in self._held)

    def _rest(self) -> Tensor:
        """[t, C] all that is there and was not handed out."""
        if self._task is not None:  # not always the last attempt
            return self._task.result().codes[self.given :]
        return torch.cat(self._held)

    def _receive(self, codes: Tensor) -> None:
        self._held.append(codes)
        self._changed.set()

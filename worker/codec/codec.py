"""The codec as the worker uses it: waveforms to codes, runs of codes to waveforms, no gradients.

Knows the device and the precision of its network, checks what it is given, and keeps what is
decoded at once within a bound. Keeps no state between calls; `stream.py` does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from worker.codec.batching import DecodeQueue
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.codec.receptive import context_frames
from worker.codec.windows import Window, plan
from worker.errors import OutOfMemory

logger = logging.getLogger(__name__)

# Frames by which a row may be padded to be decoded with longer ones. On an H100 a full-size call
# costs what about 300 frames cost before it does anything (0.5 s of audio 5 ms, 10 s 17 ms), so a
# row brings less padding than it saves. On a CPU a batch saves nothing, and its larger tensors
# leave the caches: 8 x 5 s took three times as long together as one by one.
PADDING_FRAMES = {"cuda": 128}


class Codec:
    """A Descript Audio Codec with weights, ready to encode and decode. Safe to share by threads.

    Args:
        network: The network, already on its device. Taken over: its decoder is cast in place.
        fingerprint: Changes with the weights and the dimensions; codes made by one codec are
            meaningless to another, so whatever keeps codes keeps this beside them.
        decode_dtype: Precision to decode in, None for the network's own. Encoder and quantizer
            stay as they are: in float32, or nearly tied codes would flip, and a voice's codes
            would depend on the card. `precision.with_fast_decode` finds what the weights allow.
        frames_at_once: Longer runs are decoded in pieces of so many frames, which bounds memory;
            None for no bound.

    Raises:
        ValueError: if less than half of `frames_at_once` would be new, the rest being context.
    """

    def __init__(
        self,
        network: CodecNetwork,
        fingerprint: str,
        decode_dtype: torch.dtype | None = None,
        frames_at_once: int | None = None,
    ) -> None:
        self.network = network.eval()
        if decode_dtype is not None:
            self.network.decoder.to(decode_dtype)
        self.fingerprint = fingerprint
        self.frames_at_once = frames_at_once
        self.padding_frames = PADDING_FRAMES.get(self.device.type)  # see `windows.plan`
        least = 4 * self.context_frames
        if frames_at_once is not None and frames_at_once < least:
            raise ValueError(f"frames_at_once must be at least {least}, not {frames_at_once}")
        self._lock = threading.Lock()
        self._queue = DecodeQueue(self.decode_batch, together=self.padding_frames is not None)
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(self.device))  # for the weights

    @property
    def config(self) -> CodecConfig:
        """The dimensions."""
        return self.network.config

    @property
    def sample_rate(self) -> int:
        """Samples per second."""
        return self.config.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples of one frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.frame_rate

    @property
    def codebooks(self) -> int:
        """Codes of one frame."""
        return self.config.codebooks

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.encoder.conv1.weight.device

    @property
    def decode_dtype(self) -> torch.dtype:
        """Precision of the decoder."""
        return self.network.decoder.conv1.weight.dtype

    @cached_property
    def context_frames(self) -> int:
        """Frames on each side of a frame that its samples depend on."""
        return context_frames(self.network.decoder)

    @torch.inference_mode()
    def encode(self, waveform: Tensor) -> Tensor:
        """Turns sound into codes.

        Args:
            waveform: [N] floating point, mono, at `sample_rate`, full scale ±1. Zeros are added
                at its end up to a whole number of frames.

        Returns:
            Codes [ceil(N / hop_length), codebooks], int64, on the CPU.

        Raises:
            ValueError: if the waveform has another shape, is empty, or is not floating point.
            OutOfMemory: if there is no memory for it.
        """
        if waveform.ndim != 1 or not len(waveform) or not waveform.is_floating_point():
            raise ValueError(
                "waveform must be a floating point tensor [N] with N >= 1, "
                f"not {waveform.dtype} {list(waveform.shape)}"
            )
        try:
            with self._turn():
                padded = F.pad(self._to_network(waveform), (0, -len(waveform) % self.hop_length))
                latent = self.network.encoder(padded[None, None])  # [1, latent_dim, T]
                codes: Tensor = self.network.quantizer(latent).codes  # [1, K, T]
                return codes[0].T.contiguous().cpu()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                "not enough memory to encode a recording; a shorter one takes less"
            ) from error

    def decode(self, codes: Tensor) -> Tensor:
        """Turns codes into sound, in the codec's own thread.

        On a GPU, together with what other threads ask for meanwhile.

        Args:
            codes: [T, codebooks] integers from 0 to `codebook_size` - 1.

        Returns:
            Waveform [T * hop_length], float32 within ±1, on the CPU.

        Raises:
            ValueError: if the codes have another shape or type, or one is out of range.
            OutOfMemory: if there is no memory for it, even in smaller pieces.
        """
        return self._queue.decode(codes)

    def decode_batch(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Turns several runs of codes into sound, in as few calls of the network as are worth it.

        Args:
            rows: Each as for `decode`, of any lengths.

        Returns:
            For each row, in order, the waveform that `decode` gives for it alone.

        Raises:
            ValueError: as `decode`, if any row is wrong; nothing is decoded then.
            OutOfMemory: as `decode`.
        """
        for codes in rows:
            self.check(codes)
        waveforms = self._decode_within(rows, self.frames_at_once)
        if waveforms is None:
            # Outside of any `except`, whose traceback would keep the first attempt's tensors.
            limit = self._smaller_limit([len(codes) for codes in rows])
            logger.warning("out of memory while decoding audio; again, %d frames at once", limit)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            waveforms = self._decode_within(rows, limit)
            if waveforms is None:
                raise OutOfMemory(
                    f"not enough memory on {self.device} to decode audio, even {limit} frames "
                    "at once; fewer slots or a larger GPU leave more"
                )
        return waveforms

    def check(self, codes: Tensor) -> None:
        """Raises ValueError unless `codes` can be decoded; see `decode`."""
        if codes.ndim != 2 or codes.shape[1] != self.codebooks:
            raise ValueError(f"codes must be [T, {self.codebooks}], not {list(codes.shape)}")
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes must be integers, not {codes.dtype}")
        if not len(codes):
            return
        lowest, highest = (int(bound) for bound in torch.aminmax(codes))
        if lowest < 0 or highest >= self.config.codebook_size:
            raise ValueError(
                f"codes must be from 0 to {self.config.codebook_size - 1}, "
                f"these are from {lowest} to {highest}"
            )

    def _plan(self, lengths: Sequence[int], limit: int | None) -> list[list[Window]]:
        return plan(lengths, self.context_frames, limit, self.padding_frames)

    def _smaller_limit(self, lengths: Sequence[int]) -> int:
        """A quarter of the most frames decoded at once so far; no less than the least allowed."""
        batches = self._plan(lengths, self.frames_at_once)
        most = max(len(batch) * batch[0].frames for batch in batches)
        return max(most // 4, 4 * self.context_frames)

    @torch.inference_mode()
    def _decode_within(self, rows: Sequence[Tensor], limit: int | None) -> list[Tensor] | None:
        """Every row's waveform, from batches of at most `limit` frames; None if out of memory."""
        waveforms = [torch.empty(len(codes) * self.hop_length) for codes in rows]
        try:
            with self._turn():
                self._fill(waveforms, rows, limit)
        except torch.OutOfMemoryError:
            return None
        return waveforms

    def _fill(self, waveforms: Sequence[Tensor], rows: Sequence[Tensor], limit: int | None) -> None:
        hop = self.hop_length
        for batch in self._plan([len(codes) for codes in rows], limit):
            decoded = self._decode_windows(rows, batch)
            for window, samples in zip(batch, decoded, strict=True):
                row, start, _, first, last = window
                kept = samples[(first - start) * hop : (last - start) * hop]
                waveforms[row][first * hop : last * hop] = kept.float().cpu()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On a GPU, one call of the network at a time, beside what the engine runs there."""
        if self._stream is None:
            yield
            return
        with self._lock, torch.cuda.stream(self._stream):
            yield

    def _decode_windows(self, rows: Sequence[Tensor], batch: list[Window]) -> Tensor:
        """One call of the network: samples [B, frames of the longest window * hop_length]."""
        runs = [
            rows[window.row][window.start : window.end].to(self.device, torch.int64)
            for window in batch
        ]
        ids = pad_sequence(runs, batch_first=True).transpose(1, 2)  # [B, K, T]
        latent = self.network.quantizer.from_codes(ids).to(self.decode_dtype)
        waveform: Tensor = self.network.decoder(latent)  # [B, 1, T * hop_length]
        return waveform[:, 0]

    def _to_network(self, waveform: Tensor) -> Tensor:
        return waveform.to(self.device, self.network.encoder.conv1.weight.dtype)

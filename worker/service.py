"""A job in, speech out: the only file that knows the order of the stages.

job → script (chunks, anchors) → sequences → codes → waveforms → one file → answer
                                                   └──→ pieces, while later ones are generated
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from worker.audio.encode import EncodedAudio, encode_audio
from worker.codec.codec import Codec
from worker.delivery import Answer, Delivery, Parcel
from worker.engine.loop import EngineLoop
from worker.errors import EngineBroken, EngineError, InvalidInput
from worker.pieces import Piece, cut_pieces
from worker.remote import TURNED_OFF, RemoteReferences
from worker.report import report, retold, summary
from worker.schema import RANDOM_SEED, JobInput, JobResult, ModelInfo
from worker.script import Budget, write_script
from worker.speech import Order, Reference, Speech, end_all
from worker.take import Spoken
from worker.text import parse_turns
from worker.voices.library import VoiceLibrary
from worker.voices.voice import Voice

logger = logging.getLogger(__name__)

FrameCallback = Callable[[int], None]
ChunkCallback = Callable[[int, int], None]
Waveform = NDArray[np.float32]  # [N]


class Service:
    """Everything that is loaded once, and the way of a job through it."""

    def __init__(
        self,
        engine: EngineLoop,
        codec: Codec,
        voices: VoiceLibrary,
        delivery: Delivery,
        model: ModelInfo,
        trained: bool = True,
        remote: RemoteReferences | None = None,
    ) -> None:
        """Puts together what a job passes through.

        Args:
            engine: generates.
            codec: the model's.
            voices: the library, which also encodes clones.
            delivery: hands over what is done.
            model: which weights speak.
            trained: whether they were trained.
            remote: fetches recordings that lie elsewhere; without it, jobs with one are refused.
        """
        self.voices = voices
        self.model = model
        self._engine, self._codec, self._delivery = engine, codec, delivery
        self._trained, self._remote = trained, remote
        config = engine.engine.config
        self._budget = Budget(
            config.encoder.max_positions, config.decoder.max_positions - config.max_delay
        )
        self._silence = torch.zeros(0, config.decoder.channels, dtype=torch.long)

    @property
    def slots(self) -> int:
        """Chunks that are generated side by side."""
        return self._engine.engine.slots

    @property
    def sample_rate(self) -> int:
        """Of the pieces that `stream` hands out, in Hz."""
        return self._codec.sample_rate

    def check_alive(self) -> None:
        """Passes while jobs can be done.

        Raises:
            EngineBroken: if this process cannot generate any more.
        """
        if self._engine.broken is not None:
            raise EngineBroken(self._engine.broken)

    def close(self) -> None:
        """Stops the engine; jobs under way fail with `EngineError`."""
        self._engine.close()

    async def run(
        self,
        job: JobInput,
        job_id: str,
        on_frames: FrameCallback | None = None,
        on_chunk: ChunkCallback | None = None,
        timeout_s: float | None = None,
        s3_config: object = None,
    ) -> Answer:
        """Does one job and delivers its audio.

        Cancelling the task that awaits this frees the job's slots at once.

        Args:
            job: checked.
            job_id: names the job in the log and in whatever is stored.
            on_frames: called from the engine's thread with the number of new frames.
            on_chunk: called on the event loop with the number of finished chunks and that of all,
                each time another is finished, except the last.
            timeout_s: seconds from now after which the engine gives the job up.
            s3_config: the job's `s3Config` as it came, unchecked; `None` where it has none.

        Returns:
            The delivery's fields and those of `JobResult`, ready for JSON.

        Raises:
            WorkerError: whatever `worker.errors` lists for jobs, uploads and the engine.
        """
        route = await asyncio.to_thread(self._delivery.route, job.output, s3_config)
        result, audio, encode = await self._spoken(job, on_frames, on_chunk, timeout_s)
        result = result.model_copy(update={"job_id": job_id})
        parcel = Parcel(
            job_id,
            audio,
            encode,
            format_is_free=not job.names("output_format"),
            describe=partial(_described, result),
            seed=result.seed,
            fingerprint=result.model.fingerprint,
        )
        delivered = await asyncio.to_thread(self._delivery.deliver, parcel, route)
        logger.info("job %s: %s", job_id, summary(result))
        return delivered.answer

    async def speak(
        self,
        job: JobInput,
        on_frames: FrameCallback | None = None,
        on_chunk: ChunkCallback | None = None,
        timeout_s: float | None = None,
    ) -> tuple[JobResult, EncodedAudio]:
        """Does one job; the audio is the caller's to deliver. See `run`."""
        result, audio, _ = await self._spoken(job, on_frames, on_chunk, timeout_s)
        return result, audio

    async def _spoken(
        self,
        job: JobInput,
        on_frames: FrameCallback | None,
        on_chunk: ChunkCallback | None,
        timeout_s: float | None,
    ) -> tuple[JobResult, EncodedAudio, Callable[[str], EncodedAudio]]:
        """A job's result, its audio, and how to have that in another format."""
        async with self._speech(job, timeout_s, on_frames) as speech:
            waveforms = await self._decode_all(speech, on_chunk)
        encode = partial(_encode, waveforms, self._codec.sample_rate)
        audio = await asyncio.to_thread(encode, job.output_format)
        result = self._report(speech, audio.format, audio.sample_rate, audio.samples)
        return result, audio, encode

    async def stream(
        self, job: JobInput, job_id: str, timeout_s: float | None = None
    ) -> AsyncGenerator[Piece | JobResult, None]:
        """Does one job and hands out its audio while the rest is being generated.

        Closing the generator, or cancelling the task that awaits it, frees the job's slots at
        once. A chunk that lacks words is generated again only while nothing of it was handed out.

        Args:
            job: checked.
            job_id: names the job in the log.
            timeout_s: seconds from now after which the engine gives the job up.

        Yields:
            The pieces in order, then, as the last item, the result. Its `sample_rate` and
            `audio_length` are those of the pieces, its `format` is the one that the job names.

        Raises:
            WorkerError: see `run`; the pieces before are those of the chunks that were done.
        """
        samples = 0
        async with (
            self._speech(job, timeout_s, live=True) as speech,
            aclosing(cut_pieces(speech, self._codec)) as pieces,
        ):
            async for piece in pieces:
                samples += len(piece.waveform)
                yield piece
        if not samples:
            raise EngineError("there is no audio: every chunk is silent")
        result = self._report(speech, job.output_format, self._codec.sample_rate, samples)
        result = result.model_copy(update={"job_id": job_id})
        logger.info("job %s: streamed %s", job_id, summary(result))
        yield result

    @asynccontextmanager
    async def _speech(
        self,
        job: JobInput,
        timeout_s: float | None,
        on_frames: FrameCallback | None = None,
        live: bool = False,
    ) -> AsyncIterator[Speech]:
        """A job's generation, under way."""
        started = time.monotonic()
        fetched = await self._fetch(job, timeout_s)
        order = await asyncio.to_thread(self._order, job, fetched, timeout_s, started)
        async with Speech(self._engine, self._budget, order, on_frames, live) as speech:
            yield speech

    async def _fetch(self, job: JobInput, timeout_s: float | None) -> bytes | None:
        """The recording of a job that says where it lies; of any other job nothing."""
        if job.reference_audio_url is None:
            return None
        if self._remote is None:
            raise InvalidInput(TURNED_OFF)
        return await self._remote.fetch(job.reference_audio_url, timeout_s)

    def _order(
        self, job: JobInput, fetched: bytes | None, timeout_s: float | None, started: float
    ) -> Order:
        """What takes long enough to hold up other jobs: a voice to encode, a text to cut."""
        reference = self._reference(job, fetched)
        script = write_script(
            job.text,
            budget=self._budget,
            voice_turns=reference.turns,
            voice_frames=reference.codes.shape[0],
            enable_chunking=job.enable_chunking,
            chunk_size=job.chunk_size,
            allow_multiple_speakers=job.allow_multiple_speakers,
        )
        seed = secrets.randbits(32) if job.seed in (None, RANDOM_SEED) else job.seed
        deadline = None if timeout_s is None else started + timeout_s
        return Order(job, script, reference, seed, started, deadline)

    def _reference(self, job: JobInput, fetched: bytes | None) -> Reference:
        voice: Voice
        if job.voice_mode == "voice_library":
            assert job.voice_id is not None
            voice = self.voices.get(job.voice_id)
        elif job.voice_mode == "clone":
            recording = job.reference_bytes if fetched is None else fetched
            voice = self.voices.clone(recording, job.reference_text or "")
        else:
            return Reference((), self._silence)
        return Reference(tuple(parse_turns(voice.transcript)), voice.codes, voice.warnings)

    async def _decode_all(self, speech: Speech, on_chunk: ChunkCallback | None) -> list[Waveform]:
        """Decodes every chunk as soon as it is generated. The first failure ends the others."""
        done, total = 0, len(speech.tasks)

        async def decode(task: asyncio.Task[Spoken]) -> Waveform:
            nonlocal done
            spoken = await task
            waveform = await asyncio.to_thread(self._codec.decode, spoken.codes)
            done += 1
            if on_chunk is not None and done < total:
                on_chunk(done, total)
            return waveform.numpy()

        decodings = [asyncio.create_task(decode(task)) for task in speech.tasks]
        try:
            return await asyncio.gather(*decodings)
        finally:
            await end_all(decodings)

    def _report(self, speech: Speech, format: str, sample_rate: int, samples: int) -> JobResult:
        return report(
            speech.order,
            [task.result() for task in speech.tasks],
            model=self.model,
            trained=self._trained,
            frame_s=self._codec.hop_length / self._codec.sample_rate,
            format=format,
            sample_rate=sample_rate,
            samples=samples,
        )


def _encode(waveforms: Iterable[Waveform], sample_rate: int, format: str) -> EncodedAudio:
    return encode_audio(np.concatenate(list(waveforms)), sample_rate, format)


def _described(result: JobResult, audio: EncodedAudio, warnings: Sequence[str]) -> Answer:
    return retold(result, audio, warnings).model_dump(mode="json")

"""A job in, speech out: the only file that knows the order of the stages.

job → script (chunks, anchors) → sequences → codes → waveforms → one file → answer
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.audio.encode import EncodedAudio, encode_audio
from worker.codec.codec import Codec
from worker.delivery import Delivery
from worker.dia.tokenizer import encode_text
from worker.engine.loop import EngineLoop
from worker.engine.sequence import SamplingParams, Sequence
from worker.schema import RANDOM_SEED, ChunkResult, JobInput, JobResult, ModelInfo
from worker.script import (
    Budget,
    PlannedChunk,
    Script,
    choose_anchors,
    frame_limit,
    text_to_read,
    write_script,
)
from worker.text import Chunk, Turn, parse_turns, render
from worker.voices.library import VoiceLibrary
from worker.voices.voice import Voice

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # generations of a chunk that comes out too short
ATTEMPT_STRIDE = 0x9E3779B9  # between their seeds, away from those of the other chunks
SHORTEST = 0.3  # of the estimated frames: 50 characters a second
UNTRAINED = "the model is untrained: the audio is noise, not speech"


@dataclass(frozen=True)
class Reference:
    """The voice prompt of a whole job; nothing where there is none."""

    turns: tuple[Turn, ...]
    codes: Tensor  # [P, C]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spoken:
    """One chunk, generated."""

    chunk: Chunk
    codes: Tensor  # [T, C]
    waveform: NDArray[np.float32]  # [N]
    seed: int
    warnings: tuple[str, ...]


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
    ) -> None:
        self.voices = voices
        self.model = model
        self._engine, self._codec, self._delivery = engine, codec, delivery
        self._notices = () if trained else (UNTRAINED,)
        config = engine.engine.config
        self._budget = Budget(
            config.encoder.max_positions, config.decoder.max_positions - config.max_delay
        )
        self._silence = torch.zeros(0, config.decoder.channels, dtype=torch.long)

    def close(self) -> None:
        """Stops the engine; jobs under way fail with `EngineError`."""
        self._engine.close()

    async def run(
        self, job: JobInput, job_id: str, on_frames: Callable[[int], None] | None = None
    ) -> dict[str, object]:
        """Does one job and delivers its audio.

        Cancelling the task that awaits this frees the job's slots at once.

        Args:
            job: checked.
            job_id: names the job in the log and in whatever is stored.
            on_frames: called from the engine's thread with the number of new frames.

        Returns:
            The delivery's fields and those of `JobResult`, ready for JSON.

        Raises:
            WorkerError: whatever `worker.errors` lists for jobs and the engine.
        """
        result, audio = await self.speak(job, on_frames)
        delivered = await asyncio.to_thread(self._delivery.deliver, job_id, audio)
        logger.info("job %s: %s", job_id, summary(result))
        return {**delivered, **result.model_dump(mode="json")}

    async def speak(
        self, job: JobInput, on_frames: Callable[[int], None] | None = None
    ) -> tuple[JobResult, EncodedAudio]:
        """Does one job; the audio is the caller's to deliver. See `run`."""
        started = time.monotonic()
        reference, script = await asyncio.to_thread(self._prepare, job)
        seed = secrets.randbits(32) if job.seed in (None, RANDOM_SEED) else job.seed
        spoken = await self._speak_all(job, script, reference, seed, on_frames)
        rate = self._codec.sample_rate
        audio = await asyncio.to_thread(_encode, spoken, rate, job.output_format)
        result = JobResult(
            format=audio.format,
            sample_rate=audio.sample_rate,
            audio_length=audio.samples,
            duration=round(audio.duration_s, 3),
            generation_time=round(time.monotonic() - started, 3),
            chunks_processed=len(spoken),
            chunks=_timeline(spoken, script, rate),
            seed=seed,
            voice_id=job.voice_id,
            model=self.model,
            warnings=[
                *self._notices,
                *reference.warnings,
                *(warning for chunk in spoken for warning in chunk.warnings),
            ],
        )
        return result, audio

    def _prepare(self, job: JobInput) -> tuple[Reference, Script]:
        """What takes long enough to hold up other jobs: a voice to encode, a text to cut."""
        reference = self._reference(job)
        script = write_script(
            job.text,
            budget=self._budget,
            voice_turns=reference.turns,
            voice_frames=reference.codes.shape[0],
            enable_chunking=job.enable_chunking,
            chunk_size=job.chunk_size,
            allow_multiple_speakers=job.allow_multiple_speakers,
        )
        return reference, script

    def _reference(self, job: JobInput) -> Reference:
        voice: Voice
        if job.voice_mode == "voice_library":
            assert job.voice_id is not None
            voice = self.voices.get(job.voice_id)
        elif job.voice_mode == "clone":
            voice = self.voices.clone(job.reference_bytes, job.reference_text or "")
        else:
            return Reference((), self._silence)
        return Reference(tuple(parse_turns(voice.transcript)), voice.codes, voice.warnings)

    async def _speak_all(
        self,
        job: JobInput,
        script: Script,
        reference: Reference,
        seed: int,
        on_frames: Callable[[int], None] | None,
    ) -> list[Spoken]:
        """Generates every chunk as soon as its anchors are there; what waits for nothing runs
        side by side. The first failure ends the others."""
        tasks: list[asyncio.Task[Spoken]] = []

        async def speak(planned: PlannedChunk) -> Spoken:
            anchors = await asyncio.gather(*(tasks[index] for index in planned.anchors))
            prompt, dropped = self._prompt(planned, anchors, reference)
            chunk_seed = (seed + planned.chunk.index) % 2**32
            spoken = await self._speak_one(job, planned.chunk, prompt, chunk_seed, on_frames)
            return replace(spoken, warnings=(*dropped, *spoken.warnings))

        tasks.extend(asyncio.create_task(speak(planned)) for planned in script.chunks)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _prompt(
        self, planned: PlannedChunk, anchors: Iterable[Spoken], reference: Reference
    ) -> tuple[Reference, list[str]]:
        """The job's voice and the anchors that fit beside it; a warning for each that does not."""
        heard = {anchor.chunk.index: anchor for anchor in anchors}
        kept = choose_anchors(
            planned.chunk,
            {index: (anchor.chunk, anchor.codes.shape[0]) for index, anchor in heard.items()},
            self._budget,
            reference.turns,
            reference.codes.shape[0],
        )
        turns = [turn for index in kept for turn in heard[index].chunk.turns]
        codes = [heard[index].codes for index in kept]
        prompt = Reference((*reference.turns, *turns), torch.cat([reference.codes, *codes]))
        lost = [index for index in planned.anchors if index not in kept]
        return prompt, [_lost_voice(planned.chunk, heard[index]) for index in lost]

    async def _speak_one(
        self,
        job: JobInput,
        chunk: Chunk,
        prompt: Reference,
        seed: int,
        on_frames: Callable[[int], None] | None,
    ) -> Spoken:
        """Generates one chunk; again with other seeds where words must be missing."""
        best, best_seed = None, seed
        for attempt in range(1 if job.temperature == 0 else ATTEMPTS):
            attempt_seed = (seed + attempt * ATTEMPT_STRIDE) % 2**32
            sequence = await self._generate(job, chunk, prompt, attempt_seed, on_frames)
            if best is None or sequence.frames > best.frames:
                best, best_seed = sequence, attempt_seed
            if not _lacks_words(chunk, sequence):
                break
        assert best is not None and best.codes is not None
        waveform = await asyncio.to_thread(self._codec.decode, best.codes)
        return Spoken(chunk, best.codes, waveform.numpy(), best_seed, _ending(chunk, best))

    async def _generate(
        self,
        job: JobInput,
        chunk: Chunk,
        prompt: Reference,
        seed: int,
        on_frames: Callable[[int], None] | None,
    ) -> Sequence:
        text = text_to_read(prompt.turns, chunk.turns)
        room = self._budget.max_frames - prompt.codes.shape[0]
        sequence = Sequence(
            text_ids=encode_text(text, self._budget.max_bytes),
            prompt=prompt.codes,
            max_new_frames=frame_limit(chunk, job.max_tokens, room),
            params=SamplingParams(
                seed, job.cfg_scale, job.temperature, job.top_p, job.cfg_filter_top_k
            ),
            on_frames=on_frames,
        )
        try:
            return await asyncio.wrap_future(self._engine.submit(sequence))
        finally:
            sequence.cancelled.set()  # frees its slot, if it still has one


def _lacks_words(chunk: Chunk, sequence: Sequence) -> bool:
    """Whether the model ended a chunk sooner than anyone could have said it."""
    return sequence.ended and sequence.frames < chunk.frames * SHORTEST


def _ending(chunk: Chunk, sequence: Sequence) -> tuple[str, ...]:
    """What about a chunk's ending the user should know."""
    name = f"chunk {chunk.index + 1}"
    if not sequence.ended:
        return (
            f"{name} was stopped at its limit of {sequence.max_new_frames} frames before the "
            "model ended it; its last words may be missing",
        )
    if _lacks_words(chunk, sequence):
        return (
            f"{name} has {sequence.frames} frames, too few for its text: words are missing; "
            "another seed may mend it",
        )
    return ()


def _lost_voice(chunk: Chunk, anchor: Spoken) -> str:
    why = "there was no room for both; a smaller chunk_size leaves more"
    if not anchor.codes.shape[0]:
        why = "that one is silent; another seed may mend it"
    return (
        f"chunk {chunk.index + 1} does not continue the voices of chunk "
        f"{anchor.chunk.index + 1}: {why}"
    )


def _encode(spoken: Iterable[Spoken], sample_rate: int, format: str) -> EncodedAudio:
    return encode_audio(np.concatenate([part.waveform for part in spoken]), sample_rate, format)


def _timeline(spoken: Iterable[Spoken], script: Script, sample_rate: int) -> list[ChunkResult]:
    """Where each chunk lies in the finished audio."""
    results = []
    position = 0
    for part in spoken:
        turns = script.as_written(part.chunk)
        end = position + len(part.waveform)
        results.append(
            ChunkResult(
                text=render(turns),
                speaker="+".join(dict.fromkeys(turn.speaker for turn in turns)),
                start=round(position / sample_rate, 3),
                end=round(end / sample_rate, 3),
                frames=part.codes.shape[0],
                seed=part.seed,
            )
        )
        position = end
    return results


def summary(result: JobResult) -> str:
    """A finished job in one line."""
    speed = result.duration / result.generation_time if result.generation_time else 0.0
    notice = f" ({UNTRAINED})" if UNTRAINED in result.warnings else ""
    return (
        f"{result.duration:.1f} s of audio in {result.chunks_processed} chunks, generated in "
        f"{result.generation_time:.1f} s ({speed:.1f} × realtime) by {result.model.name}{notice}"
    )

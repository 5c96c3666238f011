"""What a finished job tells the user beside its audio: where each chunk lies, and what to know.

Pure. All words on how a generation went stand here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from worker.audio.encode import EncodedAudio
from worker.schema import ChunkResult, JobResult, ModelInfo
from worker.script import Script
from worker.speech import Order
from worker.take import Spoken
from worker.text import render

UNTRAINED = "the model is untrained: the audio is noise, not speech"


def report(
    order: Order,
    spoken: Sequence[Spoken],
    *,
    model: ModelInfo,
    trained: bool,
    frame_s: float,
    format: str,
    sample_rate: int,
    samples: int,
) -> JobResult:
    """The result of a job that is finished now.

    Args:
        order: what was asked for.
        spoken: its chunks, in the order of the text.
        model: which weights spoke.
        trained: whether they were trained.
        frame_s: seconds of one codec frame.
        format: of the audio.
        sample_rate: of the audio, in Hz.
        samples: of the audio, at that rate.
    """
    return JobResult(
        format=format,
        sample_rate=sample_rate,
        audio_length=samples,
        duration=round(samples / sample_rate, 3),
        generation_time=round(time.monotonic() - order.started, 3),
        chunks_processed=len(spoken),
        chunks=timeline(spoken, order.script, frame_s),
        seed=order.seed,
        voice_id=order.job.voice_id,
        model=model,
        warnings=[
            *([] if trained else [UNTRAINED]),
            *order.reference.warnings,
            *(warning for chunk in spoken for warning in warnings_of(chunk)),
        ],
    )


def timeline(spoken: Sequence[Spoken], script: Script, frame_s: float) -> list[ChunkResult]:
    """Where each chunk lies in the finished audio; a frame lasts `frame_s` seconds."""
    results = []
    position = 0  # in frames
    for part in spoken:
        turns = script.as_written(part.chunk)
        end = position + part.frames
        results.append(
            ChunkResult(
                text=render(turns),
                speaker="+".join(dict.fromkeys(turn.speaker for turn in turns)),
                start=round(position * frame_s, 3),
                end=round(end * frame_s, 3),
                frames=part.frames,
                seed=part.seed,
            )
        )
        position = end
    return results


def warnings_of(spoken: Spoken) -> list[str]:
    """What about a chunk the user should know: its voices, then its ending."""
    warnings = [_lost_voice(spoken, anchor) for anchor in spoken.unheard]
    if not spoken.ended:
        warnings.append(
            f"{_name(spoken)} was stopped at its limit of {spoken.limit} frames before the model "
            "ended it; its last words may be missing"
        )
    elif spoken.lacks_words:
        warnings.append(
            f"{_name(spoken)} has {spoken.frames} frames, too few for its text: words are "
            "missing; another seed may mend it"
        )
    return warnings


def retold(result: JobResult, audio: EncodedAudio, warnings: Sequence[str]) -> JobResult:
    """The result with the same speech in another file, and further warnings."""
    return result.model_copy(
        update={
            "format": audio.format,
            "sample_rate": audio.sample_rate,
            "audio_length": audio.samples,
            "duration": round(audio.duration_s, 3),
            "warnings": [*result.warnings, *warnings],
        }
    )


def summary(result: JobResult) -> str:
    """A finished job in one line."""
    speed = result.duration / result.generation_time if result.generation_time else 0.0
    notice = f" ({UNTRAINED})" if UNTRAINED in result.warnings else ""
    return (
        f"{result.duration:.1f} s of audio in {result.chunks_processed} chunks, generated in "
        f"{result.generation_time:.1f} s ({speed:.1f} × realtime) by {result.model.name}{notice}"
    )


def _lost_voice(spoken: Spoken, anchor: Spoken) -> str:
    why = "there was no room for both; a smaller chunk_size leaves more"
    if not anchor.frames:
        why = "that one is silent; another seed may mend it"
    return f"{_name(spoken)} does not continue the voices of {_name(anchor)}: {why}"


def _name(spoken: Spoken) -> str:
    return f"chunk {spoken.chunk.index + 1}"

"""Stage 6: does the trained model end by itself, how long does it speak, and how fast is it.

    python -m builder.train_tiny.check build/train_tiny/dia-tiny --wav build/train_tiny/heard

Whether the words are right takes a recogniser, which is not run here.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import wave
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from builder.train_tiny.config import HELD_OUT, TOOLS
from builder.train_tiny.data import smoke_lines
from builder.train_tiny.samples import render
from builder.train_tiny.tools import Line, read_lines
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig
from worker.dia.tokenizer import encode_text
from worker.engine.engine import Engine
from worker.engine.sequence import SamplingParams, Sequence

logger = logging.getLogger(__name__)

CHARACTERS_PER_SECOND = 18.4  # of the two voices, as measured on the data
ROOM = 2.5  # times the expected length, before the end is forced


@dataclass(frozen=True)
class Report:
    """What was seen."""

    texts: int
    ended: float  # part that ended by themselves
    length: float  # median of frames over those expected from the text
    frames_per_second: float  # decoded, all sequences together
    realtime: float  # seconds of sound for each second of decoding
    peak: float  # of the sound, full scale 1


def load(folder: Path) -> tuple[Engine, Codec]:
    """The folder as the worker loads it, on the CPU, one sequence at a time."""
    cpu = torch.device("cpu")
    config = DiaConfig.read(folder / "config.json")
    model, _ = load_dia(folder / "model.safetensors", config, cpu, torch.float32)
    return Engine(model, slots=1), load_codec(folder / "codec", cpu)


def texts_of(lines: list[Line], count: int) -> list[str]:
    """Held-out sentences: one speaker's and two speakers' in turn."""
    spoken = [line.text for line in lines if line.use == HELD_OUT]
    texts = []
    for index in range(count):
        pair = [spoken[(2 * index + offset) % len(spoken)] for offset in range(2)]
        turns = list(zip(("S1", "S2"), pair, strict=True))[: 1 + index % 2]
        texts.append(render(turns, closing=True))
    return texts


def expected_frames(text: str, frame_rate: float) -> float:
    """Frames that the voices of the data take for a text."""
    spoken = text.replace("[S1] ", "").replace("[S2] ", "")
    return len(spoken) / CHARACTERS_PER_SECOND * frame_rate


def check(
    folder: Path, texts: list[str], params: SamplingParams, room: float = ROOM
) -> tuple[Report, list[Tensor]]:
    """Speaks the texts; returns what was seen, and the waveforms."""
    engine, codec = load(folder)
    nothing = torch.zeros(0, codec.codebooks, dtype=torch.long)
    expected = [expected_frames(text, codec.frame_rate) for text in texts]
    sequences = [
        Sequence(encode_text(text), nothing, max(1, round(room * frames)), params)
        for text, frames in zip(texts, expected, strict=True)
    ]
    started = time.monotonic()
    engine.generate(sequences)
    spent = time.monotonic() - started
    codes = [sequence.codes for sequence in sequences if sequence.codes is not None]
    waveforms = [codec.decode(each) for each in codes]
    pace = sum(map(len, codes)) / spent
    ratios = [len(each) / frames for each, frames in zip(codes, expected, strict=True)]
    report = Report(
        texts=len(texts),
        ended=sum(sequence.ended for sequence in sequences) / len(texts),
        length=median(ratios),
        frames_per_second=pace,
        realtime=pace / codec.frame_rate,
        peak=max(float(wave.abs().max()) if len(wave) else 0.0 for wave in waveforms),
    )
    return report, waveforms


def write_wav(file: Path, waveform: Tensor, rate: int) -> None:
    """16-bit mono."""
    samples = (waveform.numpy() * 32_767).astype(np.int16)
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples.tobytes())


def main() -> None:
    """Checks a folder; fails where too few texts end by themselves."""
    parser = argparse.ArgumentParser(description="numbers of a trained model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tools", type=Path, default=TOOLS, help="for the held-out sentences")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--require-ends", type=float, default=0.9, help="part that has to end")
    parser.add_argument("--temperature", type=float, default=SamplingParams.temperature)
    parser.add_argument("--wav", type=Path, help="folder for what was said")
    parser.add_argument("--smoke", action="store_true", help="two short texts, whatever they give")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    lines = smoke_lines() if options.smoke else read_lines(options.tools)
    texts = texts_of(lines, 2 if options.smoke else options.count)
    params = SamplingParams(temperature=options.temperature)
    report, waveforms = check(options.folder, texts, params)
    logger.info("%s", json.dumps(asdict(report), indent=2))
    if options.wav:
        options.wav.mkdir(parents=True, exist_ok=True)
        for index, (text, waveform) in enumerate(zip(texts, waveforms, strict=True)):
            write_wav(options.wav / f"{index:02d}.wav", waveform, 44_100)
            (options.wav / f"{index:02d}.txt").write_text(text + "\n")
    if report.ended < options.require_ends and not options.smoke:
        raise SystemExit(f"only {report.ended:.0%} of the texts ended by themselves")


if __name__ == "__main__":
    main()

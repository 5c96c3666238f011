"""A book's chapters, cut into parts that a job may have, and the parts' sound joined again."""

from __future__ import annotations

import io
import re
import wave
from dataclasses import dataclass
from pathlib import Path

from client import ClientError

# What can be joined without an encoder: frames stand alone in mp3 and aac.
FORMATS = ("mp3", "aac", "wav")
BOUNDARIES = (r"\n\s*\n", r"[.!?…][\"'”’)\]]*\s+", r"\s+")  # paragraph, sentence, word
MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True)
class Chapter:
    """A chapter, by the name that its file gets."""

    name: str
    text: str


def read_book(source: Path) -> list[Chapter]:
    """The `.txt` files of a folder, 2 before 10; or the parts of one file, cut at "# " headings."""
    if source.is_dir():
        files = sorted(source.glob("*.txt"), key=lambda file: _natural(file.stem))
        chapters = [Chapter(file.stem, _read(file)) for file in files]
    else:
        chapters = _at_headings(_read(source))
    if not chapters:
        raise ClientError(f"there is nothing to speak in {source}")
    for chapter in chapters:
        if not chapter.text:
            raise ClientError(f"the chapter {chapter.name} is empty")
    return chapters


def cut(text: str, longest: int) -> list[str]:
    """Pieces of at most `longest` characters: whole paragraphs, or sentences, or words.

    Where a piece does not begin with a speaker's tag, it begins with the last one before it.
    """
    pieces, tag = [], ""
    while text:
        piece = (
            text if len(text) <= longest - len(tag) else text[: _boundary(text, longest - len(tag))]
        )
        text = text[len(piece) :].lstrip()
        spoken = piece if re.match(r"\[S[12]\]", piece) else f"{tag}{piece}"
        pieces.append(spoken.rstrip())
        tag = next((f"{found} " for found in re.findall(r"\[S[12]\]", spoken)[-1:]), "")
    return pieces


def join(parts: list[bytes], format: str) -> bytes:
    """One file of several."""
    if len(parts) == 1:
        return parts[0]
    if format == "wav":
        return _join_wav(parts)
    return _join_mp3(parts) if format == "mp3" else b"".join(parts)


def _at_headings(text: str) -> list[Chapter]:
    front, *rest = re.split(r"^# +", f"\n{text}\n", flags=re.MULTILINE)
    found = [("front", front)] if front.strip() else []
    for part in rest:
        heading, _, body = part.partition("\n")
        heading = heading.strip()
        stop = "" if heading.endswith((".", "!", "?", "…")) else "."
        found.append((heading, f"{heading}{stop}\n\n{body.strip()}"))
    return [
        Chapter(f"{number:02d}-{_slug(heading)}", body.strip())
        for number, (heading, body) in enumerate(found, start=1)
    ]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ClientError(f"{file} is not UTF-8") from None


def _slug(heading: str) -> str:
    return re.sub(r"[^\w]+", "-", heading.lower()).strip("-")[:60] or "chapter"


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _boundary(text: str, longest: int) -> int:
    for boundary in BOUNDARIES:
        ends = [match.end() for match in re.finditer(boundary, text[: longest + 1])]
        ends = [end for end in ends if longest // 3 < end <= longest]
        if ends:
            return ends[-1]
    return longest


def _join_wav(parts: list[bytes]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        for number, part in enumerate(parts):
            with wave.open(io.BytesIO(part)) as source:
                if number == 0:
                    output.setparams(source.getparams())
                output.writeframes(source.readframes(source.getnframes()))
    return file.getvalue()


def _join_mp3(parts: list[bytes]) -> bytes:
    """The first frame of each says how long it is; one is kept, and says how long all are."""
    split = [_split(part) for part in parts]
    sound = b"".join(part[len(head) :] for part, (head, _) in zip(parts, split, strict=True))
    head, at = split[0]
    if not all(head for head, _ in split):
        return sound
    frames = sum(int.from_bytes(head[at + 8 : at + 12], "big") for head, at in split)
    told = frames.to_bytes(4, "big") + (len(head) + len(sound)).to_bytes(4, "big")
    return head[: at + 8] + told + head[at + 16 :] + sound


def _split(mp3: bytes) -> tuple[bytes, int]:
    """The frame that tells the length, if the file begins with one, and where in it that begins."""
    kbits, rate, padding = mp3[2] >> 4, mp3[2] >> 2 & 3, mp3[2] >> 1 & 1
    if mp3[0] != 0xFF or mp3[1] & 0xFE != 0xFA or kbits == 15 or rate == 3:  # MPEG 1, layer III
        return b"", 0
    head = mp3[: 144_000 * MP3_KBITS[kbits] // MP3_RATES[rate] + padding]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    return (head, at) if at > 0 and head[at + 7] & 3 == 3 else (b"", 0)

"""Text to the byte ids that Dia reads.

Ids are UTF-8 bytes, with one byte for each speaker tag. Source: nari-labs/dia, `_encode_text`;
unlike there, text that is too long is refused, never cut.
"""

from __future__ import annotations

from worker.errors import InvalidInput

SPEAKER_TAGS = {"[S1]": b"\x01", "[S2]": b"\x02"}
PAD_ID = 0


def encode_text(text: str, max_bytes: int = 1024) -> list[int]:
    """Ids of a whole model text (prompt transcript included).

    Raises:
        InvalidInput: if the text is empty, longer than `max_bytes` ids, no valid Unicode, or
            holds a control character that the model would read as padding or as a speaker.
    """
    if not text:
        raise InvalidInput("text is empty")
    if any(character in "\x00\x01\x02" for character in text):
        raise InvalidInput("text holds one of the control characters U+0000 to U+0002")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("text holds half of a surrogate pair") from error
    for tag, byte in SPEAKER_TAGS.items():
        encoded = encoded.replace(tag.encode(), byte)
    if len(encoded) > max_bytes:
        raise InvalidInput(
            f"text takes {len(encoded)} bytes, at most {max_bytes} fit in one generation "
            "(a voice's transcript included)"
        )
    return list(encoded)

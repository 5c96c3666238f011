"""The modules beside the examples: the client, to be copied, and the chapters of a book."""

from __future__ import annotations

import asyncio
import importlib
import io
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from tests.end_to_end.examples.unreliable import EXAMPLES, KEY, RATE, SENTENCES, tone


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("client")


@pytest.fixture
def chapters(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("chapters")


def test_a_server_that_is_not_there_is_given_up_in_time(client: ModuleType) -> None:
    async def ask() -> None:
        async with client.Endpoint("e", KEY, "http://127.0.0.1:9") as endpoint:
            endpoint.patience_s = 1.0
            await endpoint.submit({"text": "Hello."}, 10)

    started = time.monotonic()
    with pytest.raises(client.ClientError, match=r"does not answer \(ConnectError\)") as raised:
        asyncio.run(ask())
    assert not isinstance(raised.value, client.OutcomeUnknown)
    assert 0.3 < time.monotonic() - started < 3


def test_a_long_chapter_is_cut_between_sentences_and_keeps_every_word(chapters: ModuleType) -> None:
    text = " ".join(SENTENCES[:20]) + "\n\n" + " ".join(SENTENCES[20:])
    parts = chapters.cut(text, 300)
    assert " ".join(parts).split() == text.split()
    assert all(150 < len(part) <= 300 and part.endswith(".") for part in parts[:-1])


def test_a_speaker_who_is_cut_off_goes_on_as_the_same_one(chapters: ModuleType) -> None:
    text = "[S1] Go on. [S2] " + " ".join(SENTENCES[:10])
    parts = chapters.cut(text, 200)
    assert all(part.startswith("[S2] ") for part in parts[1:])
    assert max(map(len, parts)) <= 200


def test_text_without_a_place_to_cut_is_cut_all_the_same(chapters: ModuleType) -> None:
    assert chapters.cut("a" * 450, 200) == ["a" * 200, "a" * 200, "a" * 50]


def test_joined_files_play_as_long_as_their_parts(chapters: ModuleType) -> None:
    samples = np.sin(np.arange(22_050) / 20) * 0.5
    file = io.BytesIO()
    soundfile.write(file, samples, 44_100, format="MP3")
    joined = io.BytesIO(chapters.join([file.getvalue()] * 3, "mp3"))
    assert len(soundfile.read(joined)[0]) == pytest.approx(3 * len(samples), abs=3 * 2500)
    waves = io.BytesIO(chapters.join([tone(0.1), tone(0.2)], "wav"))
    assert len(soundfile.read(waves)[0]) == round(0.3 * RATE)
    assert joined.getvalue().count(b"Xing") == 1


def test_chapters_in_a_folder_are_read_in_the_order_of_their_numbers(
    chapters: ModuleType, book: Path
) -> None:
    assert [chapter.name for chapter in chapters.read_book(book)] == ["1", "2", "3", "4", "10"]


def test_the_client_to_be_copied_is_short_and_needs_httpx_alone() -> None:
    source = (EXAMPLES / "client.py").read_text()
    assert len(source.splitlines()) < 150
    imported = {
        line.split()[1].split(".")[0]
        for line in source.splitlines()
        if line[:6] in ("import", "from c")
    }
    assert imported - set(sys.stdlib_module_names) == {"httpx"}

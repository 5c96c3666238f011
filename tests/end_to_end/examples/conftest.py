"""A queue without a worker, and a book to be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.examples.unreliable import Unreliable


@pytest.fixture
def queue() -> Iterator[Unreliable]:
    """A queue without a worker."""
    with Unreliable() as queue:
        yield queue


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A folder of five chapters, of one job each."""
    folder = tmp_path / "chapters"
    folder.mkdir()
    for number in (1, 2, 3, 4, 10):
        (folder / f"{number}.txt").write_text(f"This is chapter {number}.")
    return folder

"""An empty house, for each test its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weights.house import House


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return House(tmp_path / "app", tmp_path / "volume/hub", tmp_path / "cache/hub")

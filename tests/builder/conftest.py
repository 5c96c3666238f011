"""Two servers: the hub, and the host to which it sends its visitors for large files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.pins import CODECS, DIA, Pin
from tests.builder.published import Small, publish, small_models
from tests.builder.serving import Hub, serving


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def elsewhere() -> Iterator[Hub]:
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small_models(tiny_model, tmp_path_factory.mktemp("published"))


@pytest.fixture
def pins(hub: Hub, small: Small, monkeypatch: pytest.MonkeyPatch) -> dict[str, Pin]:
    """Small models on the hub, under the names of the real ones."""
    pins = publish(hub, small)
    for table in (DIA, CODECS):
        for repository in table:
            monkeypatch.setitem(table, repository, pins[repository])
    return pins


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Where models are to go; not there yet."""
    return tmp_path / "models"

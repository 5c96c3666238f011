"""What every test may need: one thread of torch, and the small model made afresh."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from builder.make_tiny import make_tiny
from worker.config import load_settings
from worker.service import Service
from worker.settings import Settings
from worker.startup import start

SHIPPED_VOICES = Path(__file__).parents[1] / "voices"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dia-tiny with its codec; made here, so that no stale copy is tested."""
    folder = tmp_path_factory.mktemp("models") / "dia-tiny"
    make_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def voice_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped voices, copied: the library keeps codes beside them."""
    folder = tmp_path_factory.mktemp("library") / "voices"
    return Path(shutil.copytree(SHIPPED_VOICES, folder))


@pytest.fixture(scope="session")
def tiny_settings(tiny_model: Path, voice_folder: Path) -> Settings:
    return load_settings(
        {
            "DIA_MODEL": str(tiny_model),
            "VOICE_LIBRARY_PATH": str(voice_folder),
            "MODEL_DEVICE": "cpu",
        }
    )


@pytest.fixture(scope="session")
def service(tiny_settings: Settings) -> Iterator[Service]:
    service = start(tiny_settings)
    yield service
    service.close()

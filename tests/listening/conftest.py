"""Who is listened to: the model that `DIA_MODEL` names, the shipped voices, and flite.

Everything here is skipped where the ears are not installed, and what needs a trained model where
there is none. `DIA_MODEL` may be a folder of weights, `DAC_MODEL` that of a codec; without them it
is the embedded model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from handler import make_handler
from tests.listening import ears, measures, texts
from tests.listening.measures import Handler, Recording
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec
from worker.config import load_settings
from worker.service import Service
from worker.settings import Settings
from worker.startup import is_trained, start
from worker.weights import EMBEDDED, find_codec, find_dia

VOICES = Path(__file__).parents[2] / "voices"
INSTALL = "pip install --no-deps -r tests/listening/requirements.txt"
UNTRAINED = (
    "{name} is untrained, its config.json says so: what it speaks is noise. "
    "DIA_MODEL may name the folder of a trained one"
)


@pytest.fixture(scope="session", autouse=True)
def installed_ears() -> None:
    missing = ears.missing_packages()
    if missing:
        pytest.skip(f"nothing to listen with: {', '.join(missing)} not installed; {INSTALL}")


# Speech that is not the model's


@pytest.fixture(scope="session")
def warm() -> Recording:
    return measures.shipped_voice(VOICES / "narrator_warm")


@pytest.fixture(scope="session")
def deep() -> Recording:
    return measures.shipped_voice(VOICES / "narrator_deep")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """Two held-out sentences in each voice of flite."""
    if not measures.has_flite():
        pytest.skip("flite is not installed; apt-get install flite")
    folder = tmp_path_factory.mktemp("flite")
    return [
        measures.flite(voice, text, folder)
        for voice in measures.FLITE_VOICES
        for text in texts.sentences(2)
    ]


# The model


@pytest.fixture(scope="session")
def chosen_settings(voice_folder: Path) -> Settings:
    """The model and the codec of the environment, with a library that may be written."""
    given = {name: os.environ[name] for name in ("DIA_MODEL", "DAC_MODEL") if name in os.environ}
    return load_settings(
        {
            "DIA_MODEL": EMBEDDED,
            **given,
            "VOICE_LIBRARY_PATH": str(voice_folder),
            "MODEL_DEVICE": "cpu",
        }
    )


@pytest.fixture(scope="session")
def trained(chosen_settings: Settings) -> Iterator[Handler]:
    """The handler of the chosen model; skips where that is untrained."""
    files = find_dia(chosen_settings, cuda_available=False)
    if not is_trained(files.config):
        pytest.skip(UNTRAINED.format(name=files.name))
    service = start(chosen_settings)
    yield make_handler(service, chosen_settings)
    service.close()


@pytest.fixture(scope="session")
def untrained(service: Service, tiny_settings: Settings) -> Handler:
    """The handler of a model that only ever speaks noise."""
    return make_handler(service, tiny_settings)


@pytest.fixture(scope="session")
def trained_codec(chosen_settings: Settings) -> Codec:
    """The codec that `DAC_MODEL` names, else that of the chosen model, if it is trained."""
    files = find_dia(chosen_settings, cuda_available=False)
    if not (os.environ.get("DAC_MODEL") or is_trained(files.config)):
        pytest.skip(UNTRAINED.format(name=f"the codec of {files.name}"))
    return load_codec(find_codec(chosen_settings, files), torch.device("cpu"))

"""What a service says and does as it starts, and once it is closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.service.jobs import run
from worker.config import load_settings
from worker.errors import EngineError, InvalidConfig
from worker.settings import Settings
from worker.startup import resolve_device, start


def test_a_folder_for_results_that_cannot_be_made_stops_the_start(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "results"
    environment = {"DIA_MODEL": str(tiny_model), "KEEP_RESULTS_IN": str(folder)}
    with pytest.raises(InvalidConfig, match=r"KEEP_RESULTS_IN.*cannot be made"):
        start(load_settings(environment))


@pytest.mark.parametrize("name", ["cuda:99", "mps", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"'{name}'.*valid are auto, cpu"):
        resolve_device(name)


def test_a_bare_cuda_is_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = ("auto", "cuda", "cuda:1")
    assert [str(resolve_device(name)) for name in names] == ["cuda:0", "cuda:0", "cuda:1"]


def test_preloaded_voices_are_in_memory_before_the_first_job(tiny_settings: Settings) -> None:
    library = tiny_settings.voice_library.model_copy(update={"preload_voices": ("narrator_warm",)})
    service = start(tiny_settings.model_copy(update={"voice_library": library}))
    try:
        assert service.voices.get_performance_stats()["cached_voices"] == ["narrator_warm"]
    finally:
        service.close()


def test_a_closed_service_refuses_jobs(tiny_settings: Settings) -> None:
    service = start(tiny_settings)
    service.close()
    with pytest.raises(EngineError, match="closed"):
        run(service)

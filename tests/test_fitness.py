"""A device that cannot do the work is refused before the first job, in one line."""

from __future__ import annotations

import pytest
import torch

from tests.models import small_model
from worker.codec.codec import Codec
from worker.dia.config import Generation
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.errors import DeviceUnfit
from worker.fitness import check_device, try_out
from worker.service import Service

CUDA = torch.device("cuda:0")
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str] = BUILT_FOR
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (13, 0)])
def test_cards_that_this_torch_was_built_for_are_fit(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    card(monkeypatch, capability)
    check_device(CUDA, torch.bfloat16)


@pytest.mark.parametrize("capability", [(7, 0), (11, 0)])
def test_a_card_that_this_torch_was_not_built_for_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    card(monkeypatch, capability)
    dotted = ".".join(map(str, capability))
    with pytest.raises(DeviceUnfit, match=rf"A Card has compute capability {dotted}, .*7\.5, 8\.0"):
        check_device(CUDA, torch.float32)


def test_architecture_specific_builds_count_for_their_own_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card(monkeypatch, (9, 0), ["sm_90a"])
    check_device(CUDA, torch.bfloat16)


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (9, 0), [])
    with pytest.raises(DeviceUnfit, match="no CUDA device"):
        check_device(CUDA, torch.bfloat16)


def test_bfloat16_is_refused_where_the_card_has_none_and_float32_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card(monkeypatch, (7, 5))
    check_device(CUDA, torch.float32)
    with pytest.raises(DeviceUnfit, match="MODEL_DTYPE=float32"):
        check_device(CUDA, torch.bfloat16)


def test_a_cpu_is_always_fit() -> None:
    check_device(torch.device("cpu"), torch.bfloat16)


def test_a_healthy_worker_passes_its_trial_and_keeps_nothing_of_it(service: Service) -> None:
    try_out(service._engine, service._codec)
    assert not service._engine.engine.scheduler


def test_an_engine_that_fails_its_trial_stops_the_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small_model(Generation.JUNE, 9), slots=1)

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.runner, "step", lost)
    loop = EngineLoop(engine)
    try:
        with pytest.raises(DeviceUnfit, match="a trial generation failed: engine_broken"):
            try_out(loop, service._codec)
    finally:
        loop.close()


def test_audio_that_is_no_sound_stops_the_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Codec, "decode", lambda self, codes: torch.full((9,), torch.nan))
    with pytest.raises(DeviceUnfit, match="no sound"):
        try_out(service._engine, service._codec)

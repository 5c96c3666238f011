"""What is kept of results in a folder, where one is set."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.service.jobs import audio_of, run
from worker.delivery import FittingDelivery, KeepingDelivery
from worker.service import Service


def kept(service: Service, folder: Path) -> Service:
    delivery = KeepingDelivery(FittingDelivery(), folder)
    return Service(service._engine, service._codec, service.voices, delivery, service.model)


def test_kept_results_lie_in_the_folder_under_the_job_s_id(
    service: Service, tmp_path: Path
) -> None:
    keeping = kept(service, tmp_path / "results")
    result = run(keeping, job_id="job-1_a", output_format="mp3")
    assert (tmp_path / "results" / "job-1_a.mp3").read_bytes() == audio_of(result)


def test_a_job_s_id_cannot_lead_out_of_the_folder(service: Service, tmp_path: Path) -> None:
    job_id = "../../a b/c"
    run(kept(service, tmp_path / "results"), job_id=job_id)
    digest = hashlib.sha256(job_id.encode()).hexdigest()[:32]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
        f"______a_b_c.{digest}.wav"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_job_done_twice_is_kept_once(service: Service, tmp_path: Path) -> None:
    keeping = kept(service, tmp_path)
    run(keeping, job_id="job")
    run(keeping, job_id="job")
    assert [path.name for path in tmp_path.iterdir()] == ["job.wav"]


def test_a_trained_model_has_no_notice(service: Service, tmp_path: Path) -> None:
    assert not any("untrained" in warning for warning in run(kept(service, tmp_path))["warnings"])

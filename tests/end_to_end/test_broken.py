"""What becomes of jobs when a worker's device fails it: everyone is told, and nobody is lost."""

from __future__ import annotations

import json
from pathlib import Path

from tests.end_to_end.client import SENTENCE, SHORT, check_nothing_private
from tests.end_to_end.conftest import StartWorker
from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.faulty_worker import SECRET

FAULTY = Path(__file__).with_name("faulty_worker.py")


def test_a_job_without_memory_asks_for_a_new_worker_once_its_neighbours_are_answered(
    plane: ControlPlane, start_worker: StartWorker
) -> None:
    worker = start_worker("worker-1", FAULTY, FAULT="memory").wait_until_ready()
    neighbour = plane.submit({"text": SENTENCE, "max_tokens": 400})
    worker.wait_until_speaking(neighbour)
    full = plane.submit({"text": "[S1] Too much of it.", "max_tokens": 5})
    plane.wait_until(lambda: "no more jobs are taken" in worker.log)
    waiting = plane.submit(SHORT)
    assert worker.wait() == 0
    done, failed = plane.wait_for(neighbour, full)
    assert (done.status, failed.status) == ("COMPLETED", "FAILED")
    assert failed.error.startswith("out_of_memory: ")
    assert failed.output == {"error_code": "out_of_memory", "retryable": True}
    # RunPod may stop the worker as soon as it is asked to: nothing may come after that.
    assert (done.stop_pod, failed.stop_pod) == (False, True)
    assert done.finished is not None and failed.finished is not None
    assert done.finished < failed.finished
    assert plane.jobs[waiting].status == "IN_QUEUE"
    plane.cancel(waiting)


def test_when_the_device_is_lost_every_job_is_told_and_the_worker_asks_to_be_replaced(
    plane: ControlPlane, start_worker: StartWorker
) -> None:
    worker = start_worker("worker-2", FAULTY, FAULT="device").wait_until_ready()
    ids = [plane.submit({"text": SENTENCE, "max_tokens": 3000}) for _ in range(3)]
    for job_id in ids:
        worker.wait_until_speaking(job_id)
    (worker.folder / "fault").touch()
    assert worker.wait() == 0
    jobs = plane.wait_for(*ids)
    assert {job.status for job in jobs} == {"FAILED"}
    assert all(job.error.startswith("engine_broken: ") for job in jobs)
    assert all("illegal memory access" in job.error for job in jobs)
    assert [job.stop_pod for job in sorted(jobs, key=lambda job: job.finished or 0)] == [
        False,
        False,
        True,
    ]
    told = json.dumps([job.shown() for job in jobs])
    check_nothing_private(told)
    assert SECRET not in told
    assert SECRET in worker.log

"""The worker as a process: one job of a file, and a start that must not succeed."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.end_to_end import process
from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.process import ROOT

FAULTY = Path(__file__).with_name("faulty_worker.py")

Job = dict[str, Any]


@dataclass(frozen=True)
class Worker:
    """How a worker process ended, and what it left in its folder."""

    status: int
    log: str
    folder: Path


@pytest.fixture(scope="module")
def worker(
    tiny_model: Path, voice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Worker]:
    def run(
        *arguments: str,
        input: Job | None = None,
        script: Path = ROOT / "handler.py",
        **environment: str,
    ) -> Worker:
        folder = tmp_path_factory.mktemp("worker")
        if input is not None:
            job = json.loads((ROOT / "test_input.json").read_text())
            job["input"].update(input)
            (folder / "test_input.json").write_text(json.dumps(job))
        base = process.environment(tiny_model, voice_folder, folder)
        ended = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=folder,
            env={**base, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return Worker(ended.returncode, ended.stdout, folder)

    return run


@pytest.fixture(scope="module")
def good(worker: Callable[..., Worker]) -> Worker:
    return worker(
        input={"max_tokens": 20},
        RUNPOD_LOG_LEVEL="WARN",
        KEEP_RESULTS_IN="results",
        PRELOAD_VOICES="narrator_warm",
    )


def test_a_good_job_in_the_working_directory_ends_with_success(good: Worker) -> None:
    assert good.status == 0, good.log
    assert "job test_input: " in good.log


def test_the_result_lies_in_the_folder_that_was_asked_for(good: Worker) -> None:
    info = soundfile.info(good.folder / "results" / "test_input.wav")
    assert (info.samplerate, info.channels) == (44_100, 1)
    assert 0 < info.frames <= 20 * 512


def test_the_log_holds_no_audio(good: Worker) -> None:
    assert re.search(r"[A-Za-z0-9+/]{200}", good.log) is None
    data = (good.folder / "results" / "test_input.wav").read_bytes()
    assert base64.b64encode(data).decode()[:40] not in good.log


def test_the_log_of_the_start_times_every_stage(good: Worker) -> None:
    for stage in (
        "dia-tiny",
        "codec",
        "1 preloaded voices",
        "engine of 8 slots",
        "trial generation",
    ):
        assert re.search(rf"loaded {stage}.* in \d+\.\d\d s", good.log)
    assert re.search(r"imported everything in \d+\.\d\d s", good.log)
    assert "ready on cpu" in good.log


def test_a_bad_job_ends_with_failure_and_its_message(worker: Callable[..., Worker]) -> None:
    job = json.dumps({"input": {"text": "Hello.", "temperature": -1}})
    bad = worker("--test_input", job)
    assert bad.status == 1
    assert "failed with error: invalid_input: temperature: -1 is not allowed" in bad.log
    assert "Traceback" not in bad.log


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MODEL_DTYPE": "int8"}, ("MODEL_DTYPE: 'int8'", "float32")),
        (
            {"DIA_MODEL": "", "RUNPOD_POD_ID": "pod-1", "HF_HUB_OFFLINE": "1"},
            ("ttj/dia-1.6b-safetensors", "HF_HUB_OFFLINE is set", "To mend it"),
        ),
        ({"PRELOAD_VOICES": "narrator_worm"}, ("unknown_voice", "close are narrator_warm")),
    ],
    ids=["bad setting", "no weights on RunPod", "unknown voice"],
)
def test_a_worker_that_cannot_start_says_why_in_one_line_and_ends(
    worker: Callable[..., Worker], environment: dict[str, str], words: tuple[str, ...]
) -> None:
    failed = worker(input={"max_tokens": 5}, **environment)
    assert failed.status == 1
    assert "Traceback" not in failed.log
    assert "Starting Serverless Worker" not in failed.log
    (line,) = [line for line in failed.log.splitlines() if "CRITICAL" in line]
    assert line == failed.log.splitlines()[-1]
    assert "the worker cannot start: " in line
    for word in words:
        assert word in line


def test_a_worker_that_cannot_start_for_an_unforeseen_reason_takes_no_job_and_says_why(
    worker: Callable[..., Worker], plane: ControlPlane
) -> None:
    failed = worker(script=FAULTY, FAULT="start", **plane.environment())
    assert failed.status == 1
    line = failed.log.splitlines()[-1]
    assert line.endswith("the worker cannot start: ZeroDivisionError: nobody has foreseen this")
    assert "Traceback" in failed.log  # whoever runs the worker needs the cause
    assert plane.arrivals == []

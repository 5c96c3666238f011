"""A small soak: jobs, trouble, and a worker that is taken down half-way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_job_is_lost_when_a_worker_is_taken_down_half_way(
    tiny_model: Path, voice_folder: Path
) -> None:
    command = [sys.executable, "-m", "bench.soak", "--fast"]
    done = subprocess.run(
        [*command, "--model", str(tiny_model), "--voices", str(voice_folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["accepted"] == figures["posted"] + figures["cancelled"] == 41
    assert figures["cancelled"] >= 1
    assert figures["posts_refused"] >= 1
    assert figures["failed"] >= 1
    assert figures["running_at_sigterm"] >= 1
    assert figures["taken_after_sigterm"] == 0
    assert figures["minute_slots_free_ms"] < 200

"""`handler.py` as a process, as RunPod starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
READY = "All fitness checks passed"
START_S = 120.0


def environment(model: Path, voices: Path, home: Path) -> dict[str, str]:
    """Of a worker with the small model, on a CPU, and nothing of this process's own."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "DIA_MODEL": str(model),
        "MODEL_DEVICE": "cpu",
        "VOICE_LIBRARY_PATH": str(voices),
        "PYTHONPATH": str(ROOT),
    }


class WorkerProcess:
    """A worker that runs until it is told to end; its log goes to a file."""

    def __init__(self, folder: Path, variables: dict[str, str], script: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script or ROOT / "handler.py")],
                cwd=folder,
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.usage = psutil.Process(self.process.pid)

    @property
    def log(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> WorkerProcess:
        """Waits until it is about to take jobs."""
        end = time.monotonic() + START_S
        while READY not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.05)
        return self

    def lines(self, job_id: str) -> list[str]:
        """What the log says of one job."""
        return [line for line in self.log.splitlines() if job_id in line]

    def wait_until_speaking(self, job_id: str) -> None:
        """Waits until a job's chunks are on their way into the slots."""
        end = time.monotonic() + START_S
        while not any("chunks to speak" in line for line in self.lines(f"[{job_id}]")):
            assert time.monotonic() < end, self.log
            time.sleep(0.02)
        time.sleep(0.3)

    def terminate(self) -> None:
        """Sends what RunPod sends when it takes a worker down."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 60.0) -> int:
        """The exit status, once it has ended."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Ends it and its heartbeat, whatever they do."""
        if self.process.poll() is None:
            heartbeats = self.usage.children(recursive=True)
            self.terminate()
            try:
                self.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for heartbeat in heartbeats:
                if heartbeat.is_running():
                    heartbeat.kill()


def written_at(line: str) -> float:
    """When the worker wrote a line, in seconds of its own clock."""
    stamp = re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", line)
    assert stamp is not None, line
    return datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def slots_free_ms(worker: WorkerProcess, job_id: str) -> float | None:
    """From a stop order to the last free slot, by the worker's own clock."""
    lines = worker.lines(f"[{job_id}]")
    ordered = [written_at(line) for line in lines if "stop order: stopped" in line]
    free = [written_at(line) for line in lines if "chunks given up; free" in line]
    return 1000 * (free[0] - ordered[0]) + 1e-6 if ordered and free else None

"""How long a worker takes from the start of its process to its first job, stage by stage.

    python -m bench.cold_start --random-weights --runs 5

Each run is a process of its own that imports the handler and starts the service, as RunPod's does;
the stages are those that the worker logs. The weights are read once before, so they come from the
page cache: what a disk or a network volume adds is not measured. Kernels that Triton has compiled
stay on disk, so the first run on a machine is also the slowest: it is shown beside the median.
Prints a table of seconds, and as its last line the same as JSON.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.subject import environment_for, parser_for, settings_for
from bench.table import finish, show, significant
from worker.settings import REPOSITORY_ROOT
from worker.startup import resolve_device, resolve_dtype
from worker.weights import ModelFiles, find_codec, find_dia

# What RunPod runs, up to the loop that takes jobs.
CHILD = """
import time
import handler
print("imported", time.time(), flush=True)
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
service, _ = handler.load()
print("ready", time.time(), flush=True)
service.close()
"""
STAGE = re.compile(r"loaded (.+) in ([\d.]+) s")
WEIGHTS = re.compile(r".+ \(.+\)")  # the model's name, and where it was found
COUNT = re.compile(r"\b\d+ | of \d+ .*")
INSIDE = {"engine": ("kernels", "recorded steps")}  # stages that are logged within another


def stages_of(output: str, began: float) -> dict[str, float]:
    """Seconds of each stage, in order, from what a child process printed.

    Args:
        output: its log, between its own two lines.
        began: `time.time()` when the process was started.
    """
    imported, ready = (
        float(re.search(rf"^{word} ([\d.]+)$", output, re.MULTILINE)[1])  # type: ignore[index]
        for word in ("imported", "ready")
    )
    logged = {_name(stage): float(seconds) for stage, seconds in STAGE.findall(output)}
    for outer, inner in INSIDE.items():
        if outer in logged:
            logged[outer] -= sum(logged.get(name, 0.0) for name in inner)
    named = {"interpreter and imports": imported - began, **logged}
    total = ready - began
    return {**named, "everything else": total - sum(named.values()), "process to ready": total}


def _name(stage: str) -> str:
    """A stage's name without what differs between models and machines."""
    return "weights" if WEIGHTS.fullmatch(stage) else COUNT.sub("", stage)


def run(environment: dict[str, str]) -> dict[str, float]:
    """Starts a worker in a process of its own."""
    began = time.time()
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=environment | {"PYTHONPATH": str(REPOSITORY_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise SystemExit(f"the worker did not start:\n{child.stdout}{child.stderr}")
    return stages_of(child.stdout, began)


def read_once(*paths: Path) -> float:
    """Brings files into the page cache; returns their gigabytes."""
    size = 0
    for path in paths:
        files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
        for file in files:
            with file.open("rb") as content:
                while chunk := content.read(1 << 24):
                    size += len(chunk)
    return size / 1e9


def rows_of(runs: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each stage."""
    names = dict.fromkeys(name for found in runs for name in found)
    rows = []
    for name in sorted(names, key=["everything else", "process to ready"].count):
        times = [found.get(name, 0.0) for found in runs]
        rows.append(
            {
                "stage": name,
                "median_s": significant(statistics.median(times), 3),
                "first_run_s": significant(times[0], 3),
                "slowest_s": significant(max(times), 3),
            }
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = parser_for(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    settings = settings_for(options)
    device = resolve_device(settings.model.device)
    files: ModelFiles = find_dia(settings, torch.cuda.is_available())
    gigabytes = read_once(files.weights.parent, find_codec(settings, files))
    environment = environment_for(options)
    rows = rows_of([run(environment) for _ in range(options.runs)])
    show(f"{files.name} on {device}, {gigabytes:.2f} GB of weights in page cache", rows)
    finish(
        "cold_start",
        device,
        resolve_dtype(settings.model.dtype, device),
        model=files.name,
        runs=options.runs,
        weights_in_page_cache=True,
        weights_gb=significant(gigabytes),
        rows=rows,
    )


if __name__ == "__main__":
    main()

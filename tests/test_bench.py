"""Each benchmark from end to end at its smallest size; what it measures is never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.published import DIA
from bench.weights import random_model
from tests.models import CPU
from worker.dia.checkpoint import load_dia
from worker.dia.config import DiaConfig
from worker.engine.footprint import parameter_count

ROOT = Path(__file__).parents[1]
PLACE = {"bench", "device", "cpu_threads", "torch", "dtype", "model"}


def run(name: str, *arguments: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints, and its last line parsed; `variables` are of its environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def assert_complete(printed: str, figures: dict[str, Any], *tables: str) -> None:
    """The last line says where, and has each table that was printed: its headings and its rows."""
    assert figures.keys() >= PLACE | set(tables)
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    for table in tables:
        rows = figures[table]
        heading = " ".join(name.replace("_", " ") for name in rows[0])
        below = lines[lines.index(heading) + 1 : -1]
        assert len(rows) == (below.index("") if "" in below else len(below))


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments for small random weights, which the first benchmark makes."""
    folder = tmp_path_factory.mktemp("bench")
    return ["--random-weights", "--size", "small", "--keep", str(folder)]


def test_decode_has_a_row_for_each_number_of_slots_at_each_context(
    random_weights: list[str],
) -> None:
    sizes = ["--slots", "1", "2", "--contexts", "16", "24", "--groups", "1", "--steps", "4"]
    printed, figures = run("decode", *random_weights, *sizes)
    assert_complete(printed, figures, "rows")
    assert [(row["slots"], row["context"]) for row in figures["rows"]] == [
        (1, 16),
        (2, 16),
        (1, 24),
        (2, 24),
    ]
    assert figures["copy_gb_per_s"] > 0


def test_decode_counts_who_gets_the_codes_of_a_lone_run(random_weights: list[str]) -> None:
    sizes = ["--slots", "2", "--targets", "1", "--frames", "2"]
    printed, figures = run("decode", *random_weights, "--reproducible", *sizes)
    assert_complete(printed, figures, "rows", "equal_by_bucket_pair")
    assert [(row["bucket"], row["prompt_frames"]) for row in figures["rows"]] == [
        (1, 0),
        (1, 100),
        (2, 0),
        (2, 100),
    ]
    assert figures["temperature"] == 1.3


def test_peers_do_the_same_work_in_one_run(random_weights: list[str]) -> None:
    sizes = ["--steps", "20", "--batches", "1", "2", "--repeats", "1"]
    printed, figures = run("peers", *random_weights, *sizes)
    assert_complete(printed, figures, "rows")
    engines = [row["engine"].split()[0] for row in figures["rows"]]
    assert engines[:4] == ["dia-worker", "dia-worker", "transformers", "transformers"]


def test_random_weights_are_made_once_and_whole(tmp_path: Path) -> None:
    folder = random_model(tmp_path, "small")
    made = (folder / "model.safetensors").stat()
    assert random_model(tmp_path, "small") == folder
    again = (folder / "model.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [folder]


def test_random_weights_never_end_what_they_speak(tmp_path: Path) -> None:
    folder = random_model(tmp_path, "small")
    config = DiaConfig.read(folder / "config.json")
    model, _ = load_dia(folder / "model.safetensors", config, CPU, torch.float32)
    assert not model.decoder.logits.weight[config.eos_id].any()


def test_random_weights_of_full_size_are_as_many_as_published() -> None:
    assert parameter_count(DIA) == 1_611_160_576


def test_jobs_are_timed_alone_together_and_under_load(tiny_model: Path, voice_folder: Path) -> None:
    sizes = ["--slots", "2", "--repeats", "1", "--together", "2", "--arrivals", "2", "--loads", "1"]
    short = ["--frames", "2", "--characters", "150"]
    places = {"DIA_MODEL": str(tiny_model), "VOICE_LIBRARY_PATH": str(voice_folder)}
    printed, figures = run("jobs", *sizes, *short, **places)
    assert_complete(printed, figures, "alone", "together", "under_load")
    assert figures["slots"] == 2


def test_a_cold_start_is_divided_into_the_stages_that_the_worker_logs(tiny_model: Path) -> None:
    printed, figures = run("cold_start", "--runs", "1", DIA_MODEL=str(tiny_model))
    assert_complete(printed, figures, "rows")
    stages = [row["stage"] for row in figures["rows"]]
    assert stages[0] == "interpreter and imports"
    assert stages[-2:] == ["everything else", "process to ready"]
    assert {"codec", "weights", "preloaded voices", "engine"} <= set(stages)


def test_memory_stands_beside_its_plan(tiny_model: Path) -> None:
    sizes = ["--chunks", "3", "--frames", "2", "--slots", "1"]
    printed, figures = run("memory", *sizes, DIA_MODEL=str(tiny_model))
    assert_complete(printed, figures, "rows")
    assert figures["rows"][0]["held"] == "allocated_bytes"
    assert figures["rows"][0]["plan"] > 0

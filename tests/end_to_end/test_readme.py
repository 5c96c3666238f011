"""The README is executed: every command, every snippet, every name in its tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from worker.config import CONFIG_VARIABLE, VARIABLES
from worker.schema import NESTED, JobInput, JobResult, parse_job
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]
# Run by what runs this test.
ITSELF = "make test"


def run(command: list[str] | str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != ITSELF])
def test_every_command_does_what_it_says_and_leaves_its_file(command: str) -> None:
    done = run(command)
    assert done.returncode == 0, done.stderr
    named = re.search(r"-o (\S+)", command)
    file = "out/test_input.wav" if command == "make run" else named and named[1]
    if file:
        assert soundfile.info(ROOT / file).duration > 0


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert ITSELF in COMMANDS
    assert [line for line in script if line.startswith("exec")] == [f"exec {ITSELF}"]


@pytest.mark.parametrize("snippet", [block for kind, block in BLOCKS if kind == "python"])
def test_every_python_snippet_runs(snippet: str, voice_folder: Path) -> None:
    done = run([sys.executable, "-c", snippet], VOICE_LIBRARY_PATH=str(voice_folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("text", [block for kind, block in BLOCKS if kind == "json"])
def test_every_job_shown_is_a_valid_job(text: str) -> None:
    job = parse_job(json.loads(text)["input"], Settings().generation)
    assert job.text


def test_the_tables_name_every_field_of_a_job_and_of_an_answer() -> None:
    named = set(re.findall(r"`(\w+)`", README))
    assert {*JobInput.model_fields, NESTED} <= named
    assert {*JobResult.model_fields, "audio", "error", "error_code", "retryable"} <= named


def test_the_table_of_settings_names_every_variable_of_the_worker() -> None:
    named = set(re.findall(r"`([A-Z][A-Z_]+)`", README))
    ours = {name for name in VARIABLES if not name.startswith("HF_")}
    assert ours | {CONFIG_VARIABLE} <= named


def test_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []

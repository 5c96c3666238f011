"""The Dockerfile, which no engine builds here: what it copies, from what, in which order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder.build_voices import main as build_voices
from builder.fetch_weights import main as fetch_weights
from builder.pins import DIA, Pin
from tests.builder.dockerfile import (
    ROOT,
    Instruction,
    Stage,
    files_of,
    is_ignored,
    lineage,
    read_dockerfile,
    target_of,
)
from tests.builder.serving import Hub
from worker.config import load_settings

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STAGES = read_dockerfile()
LAST = STAGES[-1]
COMPILERS = {"gcc", "g++", "clang", "tcc", "build-essential", "cmake", "make", "nvcc", "rustc"}
CODE_LAYER_LIMIT = 5_000_000


def stage(name: str) -> Stage:
    return next(each for each in STAGES if each.name == name)


def lay(stages: list[Stage], folder: Path) -> None:
    """Copies what stages copy from the build's context."""
    for each in stages:
        for copy in each.copies:
            for file in files_of(copy):
                target = folder / target_of(copy, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, target)


def installed(each: Instruction) -> set[str]:
    """The packages of the distribution that a RUN installs."""
    return {
        word
        for command in re.findall(r"apt-get install ([^&]+)", each.arguments)
        for word in command.split()
        if not word.startswith("-")
    }


def test_every_base_is_a_stage_or_an_image_by_exact_tag() -> None:
    names: set[str] = set()
    for each in STAGES:
        exact = re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04", each.base)
        assert each.base in names or exact, each.base
        names.add(each.name)


def test_every_source_of_a_copy_is_there_and_reaches_the_build() -> None:
    sources = [word for each in STAGES for copy in each.copies for word in copy.words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source
    for each in STAGES:
        for copy in each.copies:
            assert files_of(copy), copy.arguments


def test_every_copy_between_stages_is_from_an_earlier_one() -> None:
    for number, each in enumerate(STAGES):
        earlier = {stage.name for stage in STAGES[:number]}
        used = {copy.flag("from") for copy in each.all("COPY")} - {None}
        assert used <= earlier


def test_a_copy_of_several_files_goes_into_a_folder() -> None:
    for each in STAGES:
        for copy in each.copies:
            assert len(copy.words) == 2 or copy.words[-1].endswith("/"), copy.arguments


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("worker/service.py", False),
        ("worker/engine/kernels/fused.py", False),
        ("voices/narrator_warm/audio.flac", False),
        ("builder/requirements.txt", False),
        ("voices/narrator_warm/codes.0123.safetensors", True),
        ("worker/__pycache__/service.cpython-312.pyc", True),
        ("builder/train_tiny/train.py", True),
        ("models/dia-tiny/model.safetensors", True),
        ("tests/conftest.py", True),
        ("config.yaml", True),
        (".env", True),
        (".git/config", True),
        (".venv/bin/python", True),
    ],
)
def test_nothing_reaches_the_build_but_what_it_needs(path: str, ignored: bool) -> None:
    assert is_ignored(path) == ignored


def test_the_worker_does_not_run_as_root() -> None:
    last = LAST.instructions
    users = [each.arguments for each in last if each.keyword == "USER"]
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d{3,}", users[0])
    assert [each.keyword for each in last[-2:]] == ["USER", "CMD"]
    assert last[-1].arguments == '["python", "-u", "handler.py"]'


def test_the_last_stage_has_one_compiler_and_says_why() -> None:
    runs = [run for each in lineage(STAGES, LAST.name) for run in each.all("RUN")]
    with_compilers = [run for run in runs if installed(run) & COMPILERS]
    assert [installed(run) & COMPILERS for run in with_compilers] == [{"gcc"}]
    assert {"libc6-dev", "libpython3-dev"} <= installed(with_compilers[0])
    assert "Triton" in with_compilers[0].comment
    assert "driver.c" in with_compilers[0].comment


def test_installing_leaves_no_lists_of_packages_behind() -> None:
    for each in STAGES:
        for run in each.all("RUN"):
            if installed(run):
                assert "--no-install-recommends" in run.arguments
                assert "rm -rf /var/lib/apt/lists/*" in run.arguments
            if "pip install" in run.arguments or "fetch_weights" in run.arguments:
                assert "--mount=type=cache" in run.arguments


def test_layers_go_from_what_seldom_changes_to_what_often_does() -> None:
    order = [copy.flag("from") or "code" for copy in LAST.all("COPY")]
    assert order == ["packages", "dia", "codec", "voices", "code", "code"]
    heavy = {"/opt/venv", "models", "voices"}
    assert heavy == {copy.words[-1] for copy in LAST.all("COPY") if copy.flag("from")}


def test_a_change_of_code_moves_few_bytes() -> None:
    files = [file for copy in LAST.copies for file in files_of(copy)]
    assert Path("handler.py") in files and Path("worker/service.py") in files
    # Compiled, each module is there twice, and no larger the second time.
    assert 2 * sum((ROOT / file).stat().st_size for file in files) < CODE_LAYER_LIMIT


def test_every_package_is_of_an_exact_version() -> None:
    for name in ("requirements.txt", "constraints-cuda.txt"):
        lines = (ROOT / "builder" / name).read_text(encoding="utf-8").splitlines()
        packages = [line for line in lines if not line.startswith("#")]
        assert all(re.match(r"[\w.-]+==[\w.]+(;|$)", line) for line in packages)
        assert f"builder/{name}" in TEXT


def test_every_argument_is_used() -> None:
    declared = re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE)
    assert set(declared) == {"BAKE_WEIGHTS"}
    for name in declared:
        assert f"${name}" in TEXT or f"${{{name}}}" in TEXT


def test_no_variable_of_the_image_holds_a_secret_and_every_one_is_known() -> None:
    environment = {
        name: value
        for each in lineage(STAGES, LAST.name)
        for name, value in each.environment.items()
    }
    assert environment.keys() == {
        "PATH", "PYTHONUNBUFFERED", "DIA_MODEL_REPO_ID", "HF_HUB_OFFLINE", "RUNPOD_LOG_LEVEL",
    }  # fmt: skip
    settings = load_settings(environment)
    assert settings.platform.hub_offline
    assert settings.model.repo_id == next(iter(DIA)), "the image is told of another model"


@pytest.mark.parametrize(
    ("name", "module"),
    [("fetching", "builder.fetch_weights"), ("voices", "builder.build_voices")],
)
def test_the_stages_that_build_copy_all_that_their_scripts_import(
    tmp_path: Path, name: str, module: str
) -> None:
    lay(lineage(STAGES, name), tmp_path)
    program = f"import {module}, sys; print(sys.modules['worker'].__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_what_the_image_holds_does_a_job(
    hub: Hub, pins: dict[str, Pin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage laid out by hand, with small models from a hub of our own."""
    app, building = tmp_path / "app", tmp_path / "build"
    lay(lineage(STAGES, "voices"), building)
    fetched = ["--into", str(building / "models"), "--github", hub.url]
    assert fetch_weights(fetched, {"HF_ENDPOINT": hub.url}) == 0
    assert build_voices([str(building / "voices"), str(building / "models/dac_44khz")]) == 0
    for name in ("models", "voices"):
        shutil.copytree(building / name, app / name)
    lay([LAST], app)
    built = sorted(app.glob("voices/*/codes.*"))
    assert len(built) == 2
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {**LAST.environment, "OMP_NUM_THREADS": "1", "PRELOAD_VOICES": "narrator_warm"}
    job = '{"input": {"text": "Hello there.", "voice_id": "narrator_warm", "max_tokens": 9}}'
    done = subprocess.run(
        [sys.executable, "-u", "handler.py", "--test_input", job],
        cwd=app, env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "nari-labs/Dia-1.6B-0626 (baked into the image)" in said
    assert sorted(app.glob("voices/*/codes.*")) == built, "a voice was encoded again"

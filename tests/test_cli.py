"""What people get at a terminal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file, save_file

import worker
from worker import cli
from worker.config import load_settings

ROOT = Path(worker.__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def terminal(
    tiny_model: Path, voice_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory whose settings name the small model, and stop it early."""
    config = tmp_path / "settings.yaml"
    config.write_text("generation: {defaults: {max_tokens: 20}}\n")
    environment = {
        "DIA_CONFIG": str(config),
        "DIA_MODEL": str(tiny_model),
        "VOICE_LIBRARY_PATH": str(voice_folder),
        "MODEL_DEVICE": "cpu",
    }
    # Its default was bound when it was defined: the environment of this process.
    monkeypatch.setattr(cli, "load_settings", lambda: load_settings(environment))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def speak(*arguments: str) -> int:
    return cli.main(["speak", "[S1] Hello there.", *arguments])


@pytest.fixture(scope="module")
def process(
    tiny_model: Path, voice_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`python -m worker speak …`, as it is typed."""
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "config.yaml").write_text("generation: {defaults: {max_tokens: 20}}\n")
    output = folder / "made" / "speech.flac"
    options = ["--voice", "narrator_warm", "--seed", "7", "-o", str(output)]
    finished = subprocess.run(
        [sys.executable, "-m", "worker", "speak", "[S1] Hello there.", *options],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
            "DIA_MODEL": str(tiny_model),
            "VOICE_LIBRARY_PATH": str(voice_folder),
            "MODEL_DEVICE": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    return finished, output


def test_speaking_makes_the_file_in_the_format_that_its_ending_says(
    process: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    finished, output = process
    assert finished.returncode == 0, finished.stderr
    info = soundfile.info(output)
    assert (info.format, info.samplerate) == ("FLAC", 44_100)
    assert 0 < info.frames <= 20 * 512


def test_the_terminal_shows_progress_and_warnings_on_one_side_and_the_result_on_the_other(
    process: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    finished, output = process
    assert "frames/s" in finished.stderr
    assert "warning: the model is untrained" in finished.stderr
    assert finished.stdout.startswith(f"{output}: ")
    assert "s of audio in 1 chunks" in finished.stdout
    assert len(finished.stdout.splitlines()) == 1


def test_the_same_seed_and_voice_give_the_same_file_and_others_give_another(
    terminal: Path, process: tuple[subprocess.CompletedProcess[str], Path]
) -> None:
    voice = ("--voice", "narrator_warm")
    assert speak("-o", "same.flac", *voice, "--seed", "7") == 0
    assert speak("-o", "seed.flac", *voice, "--seed", "8") == 0
    assert speak("-o", "voice.flac", "--seed", "7") == 0
    same, seed, other = (
        (terminal / name).read_bytes() for name in ("same.flac", "seed.flac", "voice.flac")
    )
    assert same == process[1].read_bytes()
    assert len({same, seed, other}) == 3


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("-o", "speech.MP3"), "MP3"),
        (("-o", "speech"), "WAV"),
        (("-o", "speech.sound", "--format", "flac"), "FLAC"),
        (("-o", "speech.wav", "--format", "flac"), "FLAC"),
    ],
)
def test_the_format_is_what_the_option_says_else_the_ending_else_the_settings(
    terminal: Path, arguments: tuple[str, ...], kind: str
) -> None:
    assert speak(*arguments) == 0
    assert soundfile.info(terminal / arguments[1]).format == kind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "speech.docx"), "speech.docx ends in '.docx'; valid are .wav, .flac, .mp3"),
        (("-o", "speech.wav", "--seed", "-5"), "seed: -5 is not allowed"),
        (("-o", "speech.wav", "--voice", "narrator_worm"), "close are narrator_warm"),
        (("-o", "settings.yaml/speech.wav"), "settings.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    terminal: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert speak(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not list(terminal.glob("speech*"))


@pytest.mark.parametrize("arguments", [[], ["sing"], ["speak"], ["speak", "Hello."], ["parity"]])
def test_a_command_that_is_not_complete_shows_how_it_is_used(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m worker" in capsys.readouterr().err


# Parity


def test_this_machine_computes_what_the_reference_does(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(GOLDEN / name) for name in ("0626", "april")]
    assert cli.main(["parity", *folders, "--device", "cpu"]) == 0
    header, *rows, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["case", "mode", "frames", "codes", "encoder", "logits"]
    cases = [f"{name}/{case}" for name in ("0626", "april")
             for case in ("plain", "prompted", "batch", "eos")]  # fmt: skip
    assert [row.split()[0] for row in rows] == cases
    assert all(row.split()[1] == "plain" for row in rows)  # a GPU also runs as it serves
    assert all(row.split()[3] == "equal" for row in rows)
    assert verdict == "all equal"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One case of the reference, whose expected codes differ in one place."""
    folder = Path(shutil.copytree(GOLDEN / "0626", tmp_path / "damaged"))
    cases = json.loads((folder / "cases.json").read_text())
    cases["cases"] = [case for case in cases["cases"] if case["name"] == "eos"]
    (folder / "cases.json").write_text(json.dumps(cases))
    expected = load_file(folder / "expected.safetensors")
    expected["eos.codes.0"][3, 2] += 1
    save_file(expected, folder / "expected.safetensors")
    return folder


def test_a_difference_fails_and_says_in_which_case(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["parity", str(damaged), "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "damaged/eos"
    assert "DIFFERENT" in lines[1]
    assert lines[1].endswith("FAILED")
    assert lines[-1] == "1 cases failed"


def test_a_folder_without_vectors_is_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["parity", str(tmp_path / "nowhere"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "nowhere is no folder of reference vectors: config.json is missing" in error


def test_a_device_that_there_is_none_of_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parity", str(GOLDEN / "0626"), "--device", "tpu"]) == 1
    assert "model.device is 'tpu'" in capsys.readouterr().err

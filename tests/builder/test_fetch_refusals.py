"""What `builder.fetch_weights` refuses: what nobody has pinned, and what goes wrong."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from builder.connection import DownloadFailed
from builder.fetch_weights import Servers, fetch, main
from builder.pins import CODECS, DIA, Pin
from tests.builder.published import (
    APRIL,
    DESCRIPT,
    JUNE,
    ON_THE_HUB,
    QUICK,
    Small,
    names,
    run,
    source_of,
    the_error,
)
from tests.builder.serving import Answer, Hub

CPU = torch.device("cpu")
COMMIT = "a" * 40
TOKEN = "hf_notreal"


# What is not pinned


def test_every_file_but_those_that_nobody_has_written_down_is_pinned() -> None:
    for repository, pin in (DIA | CODECS).items():
        assert pin.pinned == (repository != APRIL)
        assert re.fullmatch(r"[0-9a-f]{40}|0\.0\.1", pin.revision or "") or not pin.pinned
        assert all(file.size for file in pin.files) == pin.pinned


def test_what_has_no_known_hash_is_not_taken_silently(
    hub: Hub, pins: dict[str, Pin], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(hub, models, "dia", "--dia", APRIL, "--revision", COMMIT) == 1
    assert the_error(caplog).startswith(f"{APRIL} at {COMMIT}: nobody has written down the hashes")
    assert hub.asked == []


def test_another_revision_of_a_pinned_model_has_no_known_hash_either(
    hub: Hub, pins: dict[str, Pin], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(hub, models, "dia", DIA_MODEL_REVISION=COMMIT) == 1
    assert "--unpinned takes them as they come" in the_error(caplog)


@pytest.mark.parametrize("given", ["the line", "the environment"])
def test_what_is_asked_for_outright_is_taken_and_written_down(
    hub: Hub, pins: dict[str, Pin], models: Path, small: Small, given: str
) -> None:
    line = ["--revision", COMMIT] if given == "the line" else []
    environ = {} if line else {"DIA_MODEL_REVISION": COMMIT}
    assert run(hub, models, "dia", "--dia", APRIL, "--unpinned", *line, **environ) == 0
    folder = models / "dia-1.6b-safetensors"
    source = source_of(folder)
    assert (source["revision"], source["pinned"]) == (COMMIT, False)
    assert source["downloaded"]["dia-v0_1_bf16.safetensors"]["size"] == len(b"weights")
    assert (folder / "dia-v0_1_bf16.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("revision", [[], ["--revision", "main"]])
def test_without_a_commit_nothing_unpinned_is_taken(
    hub: Hub,
    pins: dict[str, Pin],
    models: Path,
    caplog: pytest.LogCaptureFixture,
    revision: list[str],
) -> None:
    assert run(hub, models, "dia", "--dia", APRIL, "--unpinned", *revision) == 1
    assert "it must be a commit, 40 hex digits" in the_error(caplog)


# What goes wrong


def test_a_failure_is_one_line_and_leaves_no_folder(
    hub: Hub, pins: dict[str, Pin], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.files = {path: content + b"x" for path, content in hub.files.items()}
    assert run(hub, models, "codec") == 1
    pinned = pins[DESCRIPT].files[0]
    error = the_error(caplog)
    assert error.startswith(f"{hub.url}/{DESCRIPT}/releases/download/0.0.1/weights.pth: expected")
    assert f"{pinned.size} bytes with sha256 {pinned.sha256}, found" in error
    assert not (models / "dac_44khz").exists()


def test_what_came_is_kept_after_a_failure_so_that_the_next_try_goes_on(
    hub: Hub, pins: dict[str, Pin], models: Path
) -> None:
    hub.planned += [Answer(stop_after=1000)] * 2
    assert run(hub, models, "codec") == 1
    assert run(hub, models, "codec") == 0
    assert hub.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_a_broken_folder_of_the_past_does_not_survive_and_neither_does_a_half_made_one(
    hub: Hub, pins: dict[str, Pin], models: Path
) -> None:
    for name in ("dac_44khz", ".making-dac_44khz"):
        (models / name).mkdir(parents=True)
        (models / name / "rubbish").touch()
    assert run(hub, models, "codec") == 0
    assert names(models) == ["dac_44khz"]
    assert "rubbish" not in names(models / "dac_44khz")


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        (["voices"], {}, "'voices' is not allowed; it must be dia or codec"),
        ([], {"HF_ENDPOINT": "me:word@hub"}, "HF_ENDPOINT is not an address"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_without_asking_anybody(
    models: Path,
    caplog: pytest.LogCaptureFixture,
    arguments: list[str],
    environ: dict[str, str],
    words: str,
) -> None:
    assert main([*arguments, "--into", str(models)], environ, QUICK) == 1
    assert words in the_error(caplog)
    assert "word@" not in the_error(caplog)


def test_a_folder_that_cannot_be_written_is_one_line_too(
    hub: Hub, pins: dict[str, Pin], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models").write_text("a file")
    assert run(hub, tmp_path / "models", "codec") == 1
    assert str(tmp_path / "models") in the_error(caplog)


def test_the_hubs_token_is_not_for_github(
    hub: Hub, elsewhere: Hub, pins: dict[str, Pin], models: Path
) -> None:
    elsewhere.files, hub.files = dict(hub.files), dict(hub.files)
    servers = Servers(hub.url, elsewhere.url, TOKEN)
    fetch(pins[DESCRIPT], models, models / "d", servers, QUICK)
    fetch(pins[ON_THE_HUB], models, models / "d", servers, QUICK)
    assert {asked.authorization for asked in elsewhere.asked} == {None}
    assert {asked.authorization for asked in hub.asked} == {f"Bearer {TOKEN}"}


def test_a_hub_that_wants_a_token_says_so(hub: Hub, pins: dict[str, Pin], models: Path) -> None:
    hub.planned.append(Answer(401))
    with pytest.raises(DownloadFailed, match="HF_TOKEN must hold a token"):
        fetch(pins[JUNE], models, models / "d", Servers(hub.url, hub.url), QUICK)


def test_what_was_made_is_printed(
    hub: Hub, pins: dict[str, Pin], models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(hub, models, "codec", HF_TOKEN=TOKEN) == 0
    assert json.dumps(source_of(models / "dac_44khz"), indent=2) in caplog.text
    assert TOKEN not in caplog.text

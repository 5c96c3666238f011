"""Finding the weights: which place wins, and what is said when none has them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from worker.config import load_settings
from worker.errors import InvalidConfig, WeightsNotFound
from worker.settings import REPOSITORY_ROOT, Settings
from worker.weights import ModelFiles, find_codec, find_dia

DIA = "ttj/dia-1.6b-safetensors"
BF16 = "dia-v0_1_bf16.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})


def fill(folder: Path, *names: str) -> Path:
    """A model folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(INDEX if name.endswith(".index.json") else "{}")
    return folder


@dataclass
class House:
    """Every place where weights may lie, all of them empty, and none of them real."""

    root: Path
    runpod_hub: Path
    hub_cache: Path
    environ: dict[str, str] = field(default_factory=dict)

    def settings(self, **environ: str) -> Settings:
        base = {"HF_HUB_CACHE": str(self.hub_cache), "HF_HUB_OFFLINE": "1", **self.environ}
        return load_settings({**base, **environ})

    def dia(self, *, cuda: bool = True, **environ: str) -> ModelFiles:
        return find_dia(
            self.settings(**environ),
            cuda_available=cuda,
            root=self.root,
            runpod_hub=self.runpod_hub,
        )

    def codec(self, beside: ModelFiles | None = None, **environ: str) -> Path:
        beside = beside or ModelFiles(
            DIA, self.root / "x/config.json", self.root / "x/w.pth", "a test", embedded=False
        )
        return find_codec(
            self.settings(**environ), beside, root=self.root, runpod_hub=self.runpod_hub
        )

    def baked(self, repository: str, *names: str) -> Path:
        return fill(self.root / "models" / repository.split("/")[1], *names)

    def cached(self, hub: Path, repository: str, *names: str, ref: str = "main") -> Path:
        folder = hub / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(COMMIT)
        return fill(folder / "snapshots" / COMMIT, *names)

    def embedded(self) -> Path:
        folder = fill(self.root / "models/dia-tiny", "config.json", "model.safetensors")
        fill(folder / "codec", "config.json", "model.safetensors")
        return folder


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return House(tmp_path / "app", tmp_path / "volume/hub", tmp_path / "cache/hub")


def missed(look: partial[ModelFiles] | partial[Path]) -> str:
    """What is said when nothing is found: always one line."""
    with pytest.raises(WeightsNotFound) as caught:
        look()
    assert "\n" not in caught.value.message
    return caught.value.message


def look_in(house: House, **environ: str) -> partial[ModelFiles]:
    """The search for Dia on a machine with a GPU."""
    return partial(house.dia, **environ)


# The places of the Dia model


def test_a_model_baked_into_the_image_is_found(house: House) -> None:
    folder = house.baked(DIA, "config.json", BF16)
    assert house.dia() == ModelFiles(
        DIA, folder / "config.json", folder / BF16, "baked into the image", embedded=False
    )


def test_runpods_cached_model_is_found_through_its_ref(house: House) -> None:
    folder = house.cached(house.runpod_hub, DIA, "config.json", BF16)
    fill(folder.parent / OTHER_COMMIT, "config.json", BF16)
    files = house.dia(RUNPOD_POD_ID="abc")
    assert (files.weights, files.origin) == (folder / BF16, "RunPod's cached models")


def test_a_model_in_the_hubs_cache_is_found_without_network(house: House) -> None:
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16)
    files = house.dia()
    assert (files.config, files.origin) == (folder / "config.json", "the hub's cache")


def test_the_places_are_looked_at_in_order(house: House) -> None:
    in_hub_cache = house.cached(house.hub_cache, DIA, "config.json", BF16)
    assert house.dia().weights.parent == in_hub_cache
    on_runpod = house.cached(house.runpod_hub, DIA, "config.json", BF16)
    assert house.dia().weights.parent == on_runpod
    baked = house.baked(DIA, "config.json", BF16)
    assert house.dia().weights.parent == baked
    chosen = fill(house.root.parent / "chosen", "config.json", "model.safetensors")
    assert house.dia(DIA_MODEL=str(chosen)).weights.parent == chosen


def test_a_revision_is_taken_as_a_branch_or_as_a_commit(house: House) -> None:
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16, ref="v2")
    assert house.dia(DIA_MODEL_REVISION="v2").weights.parent == folder
    assert house.dia(DIA_MODEL_REVISION=COMMIT).weights.parent == folder
    assert OTHER_COMMIT in missed(partial(house.dia, DIA_MODEL_REVISION=OTHER_COMMIT))


def test_a_place_without_config_json_is_passed_over(house: House) -> None:
    house.baked(DIA, BF16)
    folder = house.cached(house.hub_cache, DIA, "config.json", BF16)
    assert house.dia().weights.parent == folder


def test_a_place_that_may_not_be_read_is_passed_over(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert "Permission denied" in missed(look_in(house))


# Which file


def test_of_the_default_repository_only_the_configured_file_is_taken(house: House) -> None:
    folder = house.baked(DIA, "config.json", "model.safetensors", "dia-v0_1.safetensors", BF16)
    assert house.dia().weights.name == BF16
    (folder / BF16).unlink()
    assert f"no {BF16}" in missed(look_in(house))
    chosen = house.dia(DIA_MODEL_WEIGHTS_FILENAME="dia-v0_1.safetensors")
    assert chosen.weights.name == "dia-v0_1.safetensors"


def test_of_another_model_the_usual_names_are_tried_best_first(house: House) -> None:
    usual = [
        "model.safetensors.index.json",
        "model.safetensors",
        "dia-v0_1_bf16.safetensors",
        "dia-v0_1.safetensors",
        "dia-v0_1.pth",
        "pytorch_model.bin",
    ]
    folder = house.baked("nari-labs/Dia-1.6B-0626", "config.json", *usual, *SHARDS)
    for name in usual:
        by_choice = house.dia(DIA_MODEL="nari-labs/Dia-1.6B-0626")
        by_repository = house.dia(DIA_MODEL_REPO_ID="nari-labs/Dia-1.6B-0626")
        assert by_choice.weights == by_repository.weights == folder / name
        (folder / name).unlink()
    message = missed(look_in(house, DIA_MODEL="nari-labs/Dia-1.6B-0626"))
    assert all(name in message for name in usual)


def test_shards_are_taken_only_when_all_of_them_are_there(house: House) -> None:
    names = ["config.json", "model.safetensors.index.json", SHARDS[0]]
    folder = house.baked("org/sharded", *names)
    message = missed(look_in(house, DIA_MODEL="org/sharded"))
    assert f"no {SHARDS[1]}" in message
    fill(folder, SHARDS[1])
    assert house.dia(DIA_MODEL="org/sharded").weights.name == "model.safetensors.index.json"


def test_a_damaged_index_is_reported(house: House) -> None:
    folder = house.baked("org/sharded", "config.json", "model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "not an index of shards" in missed(look_in(house, DIA_MODEL="org/sharded"))


# DIA_MODEL


def test_dia_model_may_be_a_folder_a_file_or_a_relative_path(house: House) -> None:
    here = fill(Path.cwd() / "mine", "config.json", "model.safetensors", "dia-v0_1.pth")
    in_root = fill(house.root / "theirs", "config.json", "dia-v0_1.pth")
    assert house.dia(DIA_MODEL=str(here)).weights == here / "model.safetensors"
    assert house.dia(DIA_MODEL=str(here / "dia-v0_1.pth")).weights == here / "dia-v0_1.pth"
    assert house.dia(DIA_MODEL="./mine").weights == here / "model.safetensors"
    files = house.dia(DIA_MODEL="theirs")
    assert files.weights == in_root / "dia-v0_1.pth"
    assert (files.name, files.origin, files.embedded) == ("theirs", "the path in DIA_MODEL", False)


def test_dia_model_may_name_the_configured_file_of_a_folder(house: House) -> None:
    folder = fill(Path.cwd() / "mine", "config.json", "model.safetensors", "other.pth")
    files = house.dia(DIA_MODEL="mine", DIA_MODEL_WEIGHTS_FILENAME="other.pth")
    assert files.weights == folder / "other.pth"


def test_a_chosen_folder_without_weights_does_not_fall_through(house: House) -> None:
    house.baked(DIA, "config.json", BF16)
    fill(Path.cwd() / "mine", "model.safetensors")
    message = missed(look_in(house, DIA_MODEL="mine"))
    assert message.startswith("DIA_MODEL: ")
    assert "mine: no config.json" in message


def test_a_chosen_file_that_holds_no_weights_is_refused(house: House) -> None:
    fill(Path.cwd(), "notes.txt", "config.json")
    with pytest.raises(InvalidConfig, match=r"notes\.txt.* a weights file ends in \.safetensors"):
        house.dia(DIA_MODEL="notes.txt")


@pytest.mark.parametrize("value", ["dia-big", "/no/such/folder", "./nothing", "a/b/c"])
def test_dia_model_that_is_neither_path_nor_repository_is_refused(house: House, value: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        house.dia(DIA_MODEL=value)
    assert caught.value.message == (
        f"DIA_MODEL (model.source): {value!r} is not allowed; it must be dia-tiny, an existing "
        "folder or weights file, or a repository, as org/name"
    )


# The embedded model


def test_without_a_gpu_and_with_nothing_chosen_you_get_the_embedded_model(house: House) -> None:
    folder = house.embedded()
    house.baked(DIA, "config.json", BF16)
    files = house.dia(cuda=False)
    assert files == ModelFiles(
        "dia-tiny",
        folder / "config.json",
        folder / "model.safetensors",
        "embedded in the worker",
        embedded=True,
    )
    assert house.codec(files) == folder / "codec"


@pytest.mark.parametrize(
    "environ",
    [{"RUNPOD_POD_ID": "a"}, {"RUNPOD_ENDPOINT_ID": "a"}, {"RUNPOD_WEBHOOK_GET_JOB": "http://a"}],
)
def test_on_runpod_the_embedded_model_never_stands_in(
    house: House, environ: dict[str, str]
) -> None:
    house.embedded()
    assert DIA in missed(partial(house.dia, cuda=False, **environ))
    assert DIA in missed(partial(house.dia, cuda=True, **environ))


@pytest.mark.parametrize(
    "environ", [{"DIA_MODEL": "org/model"}, {"DIA_MODEL_REPO_ID": "org/model"}]
)
def test_a_choice_is_never_answered_with_the_embedded_model(
    house: House, environ: dict[str, str]
) -> None:
    house.embedded()
    assert "org/model" in missed(partial(house.dia, cuda=False, **environ))


def test_with_a_gpu_the_embedded_model_never_stands_in(house: House) -> None:
    house.embedded()
    assert DIA in missed(look_in(house))


def test_the_embedded_model_can_be_chosen_anywhere(house: House) -> None:
    house.embedded()
    assert house.dia(DIA_MODEL="dia-tiny", RUNPOD_POD_ID="a").embedded
    assert house.dia(DIA_MODEL="dia-tiny", cuda=False).embedded


def test_a_missing_embedded_model_is_answered_with_make_model(house: House) -> None:
    assert "run `make model`" in missed(partial(house.dia, cuda=False))
    fill(house.root / "models/dia-tiny", "config.json", "model.safetensors")
    files = house.dia(cuda=False)
    house.baked("descript/dac_44khz", "config.json", "model.safetensors")
    assert "run `make model`" in missed(partial(house.codec, files))


# Nothing found


def test_on_runpod_nothing_found_is_one_line_with_every_place_and_the_mending(
    house: House,
) -> None:
    message = missed(partial(house.dia, RUNPOD_POD_ID="abc"))
    repository = "models--ttj--dia-1.6b-safetensors"
    assert message == (
        "ttj/dia-1.6b-safetensors lies in none of the places where it may: "
        f"(1) baked into the image: {house.root}/models/dia-1.6b-safetensors: no such folder; "
        f"(2) RunPod's cached models: {house.runpod_hub}/{repository}: no such folder; "
        f"(3) the hub's cache: {house.hub_cache}/{repository}: no such folder; "
        "(4) a download from the hub: not tried, because HF_HUB_OFFLINE is set. "
        "To mend it, put them into the image under models/, choose the repository as the "
        "endpoint's cached model, or set DIA_MODEL to a folder that holds them"
    )


# The codec


def test_the_places_of_the_codec_are_looked_at_in_order(house: House) -> None:
    repository, names = "descript/dac_44khz", ("config.json", "model.safetensors")
    dia = house.baked(DIA, "config.json", BF16)
    beside = house.dia()
    expected = [
        house.cached(house.hub_cache, repository),
        house.cached(house.runpod_hub, repository),
        house.root / "models/dac_44khz",
        dia / "dac",
        dia / "codec",
    ]
    for folder in expected:
        fill(folder, *names)
        assert house.codec(beside) == folder
    chosen = fill(Path.cwd() / "mine", *names)
    assert house.codec(beside, DAC_MODEL="./mine") == chosen


def test_a_chosen_codec_repository_wins_over_the_codec_beside_the_weights(house: House) -> None:
    embedded = house.embedded()
    mine = house.baked("someone/dac", "config.json", "model.safetensors")
    beside = house.dia(DIA_MODEL="dia-tiny")
    assert house.codec(beside) == embedded / "codec"
    assert house.codec(beside, DAC_MODEL="someone/dac") == mine


def test_a_chosen_codec_folder_does_not_fall_through(house: House) -> None:
    house.baked("descript/dac_44khz", "config.json", "model.safetensors")
    with pytest.raises(InvalidConfig, match=r"DAC_MODEL \(codec\.path\): '/no/such/dac'"):
        house.codec(DAC_MODEL="/no/such/dac")
    folder = fill(Path.cwd() / "mine", "config.json")
    message = missed(partial(house.codec, DAC_MODEL="./mine"))
    assert f"{folder}: no model.safetensors" in message


def test_a_codec_that_is_nowhere_is_answered_with_every_place_and_the_mending(
    house: House,
) -> None:
    message = missed(partial(house.codec, RUNPOD_POD_ID="abc"))
    places = ["x/codec", "x/dac", "models/dac_44khz", "RunPod's cached", "hub's cache", "download"]
    positions = [message.index(place) for place in places]
    assert positions == sorted(positions)
    assert message.endswith("or set DAC_MODEL to a folder that holds it")


# The download, from a hub of our own


class FakeHub(ThreadingHTTPServer):
    """As much of the hub as a download needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files: dict[str, bytes] = {}  # "org/name/file" -> content
        self.fetched: list[str] = []
        self.revisions: set[str] = set()


class _Requests(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = self.server.files.get(f"{repository}/{name}")
        if content is None:
            known = any(path.startswith(f"{repository}/") for path in self.server.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.revisions.add(revision)
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.server.fetched.append(name)
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        to_our_hub = partial(huggingface_hub.hf_hub_download, endpoint=url)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", to_our_hub)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        house.environ["HF_HUB_OFFLINE"] = "0"
        yield server
        server.shutdown()


def test_what_lies_nowhere_is_downloaded_once_and_only_what_is_needed(
    house: House, hub: FakeHub
) -> None:
    hub.files = {f"{DIA}/{name}": b"{}" for name in ("config.json", BF16, "dia-v0_1.safetensors")}
    files = house.dia()
    assert files.origin == "a download from the hub"
    assert files.config.is_file()
    assert files.weights.read_bytes() == b"{}"
    assert hub.fetched == ["config.json", BF16]
    again = house.dia(HF_HUB_OFFLINE="1")
    assert (again.weights, again.origin) == (files.weights, "the hub's cache")


def test_a_download_takes_the_revision_that_was_configured(house: House, hub: FakeHub) -> None:
    hub.files = {f"{DIA}/{name}": b"{}" for name in ("config.json", BF16)}
    house.dia(DIA_MODEL_REVISION="v2")
    assert hub.revisions == {"v2"}


def test_a_repository_that_is_pinned_is_downloaded_at_its_commit_and_found_again(
    house: House, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.hub.PINNED", {"org/model": COMMIT})
    hub.files = {f"org/model/{name}": b"{}" for name in ("config.json", "model.safetensors")}
    files = house.dia(DIA_MODEL="org/model")
    assert hub.revisions == {COMMIT}
    again = house.dia(DIA_MODEL="org/model", HF_HUB_OFFLINE="1")
    assert (again.weights, again.origin) == (files.weights, "the hub's cache")


def test_shards_are_downloaded_with_their_index(house: House, hub: FakeHub) -> None:
    names = ["config.json", "model.safetensors.index.json", *SHARDS]
    hub.files = {f"org/model/{name}": b"{}" for name in (*names, "pytorch_model.bin")}
    hub.files["org/model/model.safetensors.index.json"] = INDEX.encode()
    files = house.dia(DIA_MODEL="org/model")
    assert files.weights.name == "model.safetensors.index.json"
    assert hub.fetched == names


def test_a_download_tries_the_usual_names(house: House, hub: FakeHub) -> None:
    hub.files = {f"org/model/{name}": b"{}" for name in ("config.json", "dia-v0_1.pth")}
    assert house.dia(DIA_MODEL="org/model").weights.name == "dia-v0_1.pth"


def test_the_codec_is_downloaded_too(house: House, hub: FakeHub) -> None:
    names = ["config.json", "model.safetensors"]
    hub.files = {f"descript/dac_44khz/{name}": b"{}" for name in names}
    assert sorted(path.name for path in house.codec().iterdir()) == names


def test_a_download_that_fails_says_why(house: House, hub: FakeHub) -> None:
    assert "a download from the hub: RepositoryNotFoundError" in missed(look_in(house))
    hub.files = {f"{DIA}/config.json": b"{}"}
    assert f"a download from the hub: the repository has no {BF16}" in missed(look_in(house))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            LocalEntryNotFoundError("check your\nconnection"),
            "LocalEntryNotFoundError: check your c",
        ),
        (OfflineModeIsEnabled("no"), "OfflineModeIsEnabled: no"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (RuntimeError("transfer broke"), "RuntimeError: transfer broke"),
        (HfHubHTTPError.__bases__[0]("read timed out"), "read timed out"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hub_that_cannot_be_reached_is_reported(
    house: House, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert words in missed(look_in(house))


def test_offline_nothing_is_asked_of_the_hub(house: House, hub: FakeHub) -> None:
    hub.files = {f"{DIA}/{name}": b"{}" for name in ("config.json", BF16)}
    assert "HF_HUB_OFFLINE is set" in missed(look_in(house, HF_HUB_OFFLINE="1"))
    assert hub.fetched == []


def test_finding_weights_does_not_import_torch() -> None:
    program = "import sys, worker.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY_ROOT)

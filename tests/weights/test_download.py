"""Weights that lie nowhere and are downloaded, from a hub of our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from tests.weights.house import BF16, COMMIT, DIA, INDEX, SHARDS, House, look_in, missed


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

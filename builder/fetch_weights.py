"""Downloads Dia and the audio codec, checks them, and lays them where the worker looks for them.

    python -m builder.fetch_weights                     # both, into models/
    python -m builder.fetch_weights codec               # the codec alone
    python -m builder.fetch_weights dia --dia ttj/dia-1.6b-safetensors --revision … --unpinned

What is taken stands in `builder/pins.py`. Dia's float32 becomes bfloat16, which halves an image;
Descript's pickle becomes safetensors. `SOURCE.json` in each folder says what was downloaded, from
which commit, and what became of it. What is there already, and has the right hashes, is left alone.

`HF_ENDPOINT` is the hub's address, if it is another; `HF_TOKEN` is sent to that host and no other.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from builder.connection import DownloadFailed, RemoteFile
from builder.convert import write_bfloat16, write_codec
from builder.download import PATIENT, Patience, download, measure
from builder.pins import CODECS, DIA, GITHUB, HUB, Pin, Published
from worker.errors import InvalidCheckpoint

logger = logging.getLogger("builder.fetch_weights")

SOURCE = "SOURCE.json"
WEIGHTS = "model.safetensors"
REVISION_VARIABLE = "DIA_MODEL_REVISION"


class NotAllowed(Exception):
    """What was asked for on the command line or in the environment cannot be done."""


@dataclass(frozen=True)
class Servers:
    """Where files come from."""

    hub: str = HUB
    github: str = GITHUB
    token: str | None = None

    def remote(self, pin: Pin, file: Published) -> RemoteFile:
        """Where one file of a model is."""
        if pin.on_github:
            url = f"{self.github}/{pin.repository}/releases/download/{pin.revision}/{file.name}"
            return RemoteFile(url, file.size, file.sha256)
        url = f"{self.hub}/{pin.repository}/resolve/{pin.revision}/{file.name}"
        return RemoteFile(url, file.size, file.sha256, self.token)


def fetch(
    pin: Pin, models: Path, downloads: Path, servers: Servers, patience: Patience = PATIENT
) -> Path:
    """Makes the folder of one model. It appears under its name when it is whole.

    Args:
        pin: What to fetch.
        models: The folder of the models.
        downloads: Where files lie as they came. They stay there, for the next build.
        servers: Where they come from.
        patience: With the servers.

    Returns:
        The model's folder.

    Raises:
        DownloadFailed: see `download`.
        InvalidCheckpoint: if what came holds no such model.
    """
    folder = models / pin.folder
    if _is_there(folder, pin):
        logger.info("%s: there already", folder)
        return folder
    came = downloads / pin.folder / str(pin.revision)
    for file in pin.files:
        download(servers.remote(pin, file), came / file.name, patience)
    making = models / f".making-{pin.folder}"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for file in pin.files:
        _lay(came / file.name, making)
    source = _describe(pin, came, making)
    (making / SOURCE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    logger.info("%s: made\n%s", folder, json.dumps(source, indent=2))
    return folder


def _lay(came: Path, folder: Path) -> None:
    """Puts one downloaded file into the model's folder, in the form that an image holds."""
    if came.suffix == ".bin":
        write_bfloat16(came, folder / WEIGHTS)
    elif came.suffix == ".pth":
        write_codec(came, folder)
    else:
        shutil.copyfile(came, folder / came.name)


def _describe(pin: Pin, came: Path, folder: Path) -> dict[str, Any]:
    """What was downloaded and what the folder holds. Nothing in it changes from build to build."""
    return {
        "repository": pin.repository,
        "revision": pin.revision,
        "pinned": pin.pinned,
        "downloaded": {file.name: asdict(measure(came / file.name)) for file in pin.files},
        "holds": {file.name: asdict(measure(file)) for file in sorted(folder.iterdir())},
    }


def _is_there(folder: Path, pin: Pin) -> bool:
    """Whether the folder was made from this very model, and nothing in it has changed since."""
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        published = {file.name: file for file in pin.files}
        return (
            (source["repository"], source["revision"]) == (pin.repository, pin.revision)
            and source["downloaded"].keys() == published.keys()
            and all(
                published[name].sha256 in (None, found["sha256"])
                for name, found in source["downloaded"].items()
            )
            and all(
                asdict(measure(folder / name)) == found for name, found in source["holds"].items()
            )
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # there is none, or it is damaged: it is made again


# The command line


def main(
    arguments: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    patience: Patience = PATIENT,
) -> int:
    """Fetches what was asked for; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    downloads = options.downloads or options.into / ".downloads"
    try:
        servers = _servers(options, environ)
        pins = [_chosen(what, options, environ) for what in options.what or ("dia", "codec")]
        for pin in pins:
            fetch(pin, options.into, downloads, servers, patience)
    except (DownloadFailed, InvalidCheckpoint, NotAllowed, OSError) as error:
        logger.error("%s", " ".join(str(error).split()))
        return 1
    if options.downloads is None:
        shutil.rmtree(downloads, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="fetches the weights of an image")
    parser.add_argument("what", nargs="*", help="dia, codec; both if nothing is named")
    parser.add_argument("--into", type=Path, default=Path("models"), metavar="FOLDER")
    parser.add_argument("--dia", choices=DIA, default=next(iter(DIA)))
    parser.add_argument("--codec", choices=CODECS, default=next(iter(CODECS)))
    parser.add_argument("--revision", help=f"Dia's commit; else {REVISION_VARIABLE}, else the pin")
    parser.add_argument("--unpinned", action="store_true", help="take files of unknown hash")
    parser.add_argument(
        "--downloads", type=Path, metavar="FOLDER", help="keep what was downloaded there"
    )
    parser.add_argument("--github", default=GITHUB, help="where releases are, if elsewhere")
    return parser


def _servers(options: argparse.Namespace, environ: Mapping[str, str]) -> Servers:
    hub = environ.get("HF_ENDPOINT", "").rstrip("/") or HUB
    for name, address in (("HF_ENDPOINT", hub), ("--github", options.github)):
        if not re.match(r"https?://[^/]", address):  # not shown: it may hold a password
            raise NotAllowed(f"{name} is not an address; it must begin with https://")
    return Servers(hub, options.github.rstrip("/"), environ.get("HF_TOKEN", "").strip() or None)


def _chosen(what: str, options: argparse.Namespace, environ: Mapping[str, str]) -> Pin:
    if what not in ("dia", "codec"):
        raise NotAllowed(f"{what!r} is not allowed; it must be dia or codec")
    if what == "codec":
        return CODECS[options.codec]
    pin = DIA[options.dia].at(options.revision or environ.get(REVISION_VARIABLE) or None)
    if pin.pinned:
        return pin
    if not options.unpinned:
        raise NotAllowed(
            f"{pin.repository} at {pin.revision or 'no revision'}: nobody has written down the "
            "hashes of its files; --unpinned takes them as they come"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", pin.revision or ""):
        raise NotAllowed(
            f"the revision of {pin.repository} is {pin.revision or 'not given'}; it must be a "
            f"commit, 40 hex digits, in --revision or {REVISION_VARIABLE}"
        )
    return pin


if __name__ == "__main__":
    sys.exit(main())

"""What a client does, and what it must never be shown."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import Any

from tests.end_to_end.control_plane import ControlPlane
from tests.end_to_end.platform_queue import Job
from tests.end_to_end.process import ROOT

SENTENCE = "[S1] The harbor is quiet tonight, and all the boats wait for the wind. "
SHORT = {"text": SENTENCE, "max_tokens": 10}


def done(plane: ControlPlane, given: Any, **beside: Any) -> Job:
    (job,) = plane.wait_for(plane.submit(given, **beside))
    return job


def check_nothing_private(text: str) -> None:
    for private in ("Traceback", ".py", str(ROOT), socket.gethostname(), "worker-1-host", "key-"):
        assert private not in text


def asked(plane: ControlPlane, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(plane.url + path, data=data, timeout=60) as response:
        return json.load(response)

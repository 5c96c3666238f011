"""Jobs to check, and what is said of those that are refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from worker.errors import InvalidInput
from worker.schema import JobInput, parse_job
from worker.settings import GenerationSettings

SETTINGS = GenerationSettings()
RECORDING = base64.b64encode(b"a recording").decode()
CLONE = {"reference_audio": RECORDING, "reference_text": "[S1] What is said."}
URL = "https://voices.example/deep.wav?signature=x%2B"
NAMED = {"reference_audio_url": URL, "reference_text": "[S1] What is said."}


def job(settings: GenerationSettings = SETTINGS, /, **fields: Any) -> JobInput:
    return parse_job({"text": "Hello.", **fields}, settings)


def refusal(settings: GenerationSettings = SETTINGS, /, **fields: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        job(settings, **fields)
    return str(caught.value)

"""Sequences to submit to the engine's thread, and what their futures are to answer."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from tests.models import random_codes
from worker.dia.tokenizer import encode_text
from worker.engine.sequence import SamplingParams, Sequence

PATIENCE = 60  # seconds until a test gives up on an answer


def request(seed: int = 1, new: int = 6) -> Sequence:
    prompt = random_codes(seed % 3, 3, seed)
    return Sequence(encode_text("[S1] Hi."), prompt, new, SamplingParams(seed))


def long_request(seed: int = 1) -> Sequence:
    return request(seed, new=150)


def assert_answers_with(future: Future[Sequence], error: type[Exception]) -> Exception:
    with pytest.raises(error) as caught:
        future.result(PATIENCE)
    return caught.value

"""The engine on fused kernels says what the reference says, step for step."""

from __future__ import annotations

import json

import pytest

from tests.models import CPU, golden, relative_error
from worker.dia.config import Generation
from worker.engine.engine import Engine
from worker.engine.kernels.fused import fused_ops
from worker.parity import LOGIT_TOLERANCE, case_sequences


@pytest.mark.parametrize("generation", list(Generation))
def test_golden_logits_hold_on_fused_kernels(generation: Generation) -> None:
    vectors = golden(generation)
    cases = json.loads((vectors.folder / "cases.json").read_text())
    case = next(each for each in cases["cases"] if each["name"] == "prompted")
    sequences = case_sequences(case, cases, vectors.expected, vectors.config)
    engine = Engine(vectors.model, 1, ops=fused_ops(vectors.config, CPU))
    engine.add(sequences[0])
    for logits in vectors.expected["prompted.step_logits"]:  # each [2, C, V]
        engine.step()  # what one step draws, the next one reads
        assert engine.runner.logits is not None
        assert relative_error(engine.runner.logits[:, 0], logits) < LOGIT_TOLERANCE

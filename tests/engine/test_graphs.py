"""Steps that are recorded and played back, with a recorder that runs the step again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.test_engine import alone, assert_equal_codes, codes_of, request, several
from tests.models import NINE_CHANNELS, golden, small_model
from worker.dia.config import DiaConfig, Generation
from worker.engine.engine import Engine
from worker.engine.graphs import Buckets
from worker.engine.options import EngineOptions, Recording
from worker.engine.step import StepShape
from worker.parity import case_sequences

LONG = replace(NINE_CHANNELS, decoder=replace(NINE_CHANNELS.decoder, max_positions=3072))


@dataclass
class Recorder:
    """Records as a device does: what is recorded does not run until it is played back."""

    recorded: int = 0
    replayed: int = 0
    shapes: list[int] = field(default_factory=list)

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        self.recorded += 1
        return _Played(self, step), _Later()  # type: ignore[return-value]


class _Later:
    """Stands for logits that exist once the recording was played."""

    def __getitem__(self, _: object) -> _Later:
        return self


@dataclass
class _Played:
    recorder: Recorder
    step: Callable[[], Tensor]

    def replay(self) -> None:
        self.recorder.replayed += 1
        self.recorder.shapes.append(self.step().shape[1])


def graphed(recorder: Recorder, looks: int = 1) -> EngineOptions:
    return EngineOptions(graphs=True, record=recorder, steps_between_looks=looks)


@pytest.mark.parametrize("generation", list(Generation))
@pytest.mark.parametrize("looks", [1, 4])
def test_recorded_steps_give_the_codes_of_steps_that_run_as_written(
    generation: Generation, looks: int
) -> None:
    model, recorder = small_model(generation), Recorder()
    engine = Engine(model, 3, graphed(recorder, looks))
    engine.runner.warm()
    assert_equal_codes(
        codes_of(engine.generate(several())), [alone(model, each) for each in several()]
    )
    assert recorder.replayed > 20


def test_golden_codes_hold_with_recorded_steps() -> None:
    vectors = golden(Generation.JUNE)
    cases = json.loads((vectors.folder / "cases.json").read_text())
    case = next(each for each in cases["cases"] if each["name"] == "batch")
    sequences = case_sequences(case, cases, vectors.expected, vectors.config)
    Engine(vectors.model, 4, graphed(Recorder(), looks=4)).generate(sequences)
    assert_equal_codes(codes_of(sequences), [vectors.codes("batch", row) for row in range(2)])


def test_each_bucket_is_recorded_once_however_many_jobs_come() -> None:
    recorder = Recorder()
    engine = Engine(small_model(Generation.JUNE), 3, graphed(recorder))
    engine.runner.warm()
    at_start = recorder.recorded
    engine.generate(several())
    engine.generate(several())
    assert recorder.recorded == at_start


def test_a_bucket_that_was_not_expected_runs_as_written_first_and_is_recorded_next() -> None:
    recorder = Recorder()
    engine = Engine(small_model(Generation.JUNE), 1, graphed(recorder))
    engine.add(request(new=30))
    engine.step()
    assert recorder.recorded == recorder.replayed == 0
    engine.step()
    engine.step()
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_recording_at_the_start_goes_from_the_largest_to_the_smallest() -> None:
    recorder = Recorder()
    Engine(small_model(Generation.JUNE), 6, graphed(recorder)).runner.warm()
    assert recorder.shapes == [6, 4, 2, 1]


def test_a_job_after_the_warm_up_finds_an_engine_that_nothing_has_touched() -> None:
    model = small_model(Generation.JUNE)
    engine = Engine(model, 2, graphed(Recorder()))
    engine.runner.warm()
    assert_equal_codes(codes_of(engine.generate([request()])), [alone(model, request())])


@given(
    slots=st.integers(1, 64),
    width=st.integers(1, 64),
    context=st.integers(1, 3072),
    config=st.sampled_from([LONG, NINE_CHANNELS]),
)
def test_every_shape_has_a_bucket_that_holds_it_and_is_not_twice_too_wide(
    slots: int, width: int, context: int, config: DiaConfig
) -> None:
    width, context = min(width, slots), min(context, config.decoder.max_positions)
    bucket = Buckets(config, slots).of(StepShape(width, context, text=9, widest=35))
    assert width <= bucket.width < 2 * width or bucket.width == width
    assert bucket.width <= slots
    assert context <= bucket.context <= config.decoder.max_positions
    assert bucket.text == config.encoder.max_positions
    assert bucket.widest == config.decoder.vocabulary


def test_the_buckets_recorded_at_start_hold_every_chunk_with_a_usual_prompt() -> None:
    buckets = Buckets(LONG, 32)
    common = buckets.common()
    for width in range(1, 33):
        assert buckets.of(StepShape(width, 1900, 300, 35)) in common
    assert common[0] == StepShape(32, 2048, 64, 1028)
    assert len(common) == 12

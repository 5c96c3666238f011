"""The memory plan: equal to what is allocated, above what is used, and what a user is told."""

from __future__ import annotations

import gc
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bench.published import DAC, DIA
from builder.make_tiny import CODEC as TINY_CODEC
from builder.make_tiny import DIA as TINY
from tests.models import CPU, NINE_CHANNELS, random_codes, random_model, small_model
from worker import startup
from worker.audio.check import RECOMMENDED_SECONDS
from worker.codec.codec import Codec
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.dia.checkpoint import empty_dia
from worker.dia.config import DiaConfig, Generation
from worker.engine import prefill
from worker.engine.engine import Engine
from worker.engine.footprint import (
    AT_ONCE,
    PROMPT_FRAMES,
    codec_frame,
    codec_frames_at_once,
    longest_prompt,
    parameter_count,
    prefill_positions,
)
from worker.engine.memory import CODEC_PIECE, GIB, Budget, CodecSize, MemoryPlan, plan_memory
from worker.engine.options import EngineOptions
from worker.engine.sequence import SamplingParams, Sequence
from worker.errors import InvalidConfig, InvalidInput
from worker.settings import PerformanceSettings, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "memory.md"
CARDS = (6, 8, 12, 16, 24, 48, 80)  # GiB
CONTEXT = GIB // 2  # what the driver takes for itself

FULL = replace(DIA, generation=Generation.APRIL)
DAC_SIZE = CodecSize(DAC, weights=76_620_777 * 4, element=4)
# The proportions of the real model, small enough to run.
SCALED = replace(
    TINY,
    encoder=replace(TINY.encoder, hidden=128, intermediate=512, heads=4, max_positions=256),
    decoder=replace(
        TINY.decoder, hidden=256, intermediate=1024, query_heads=8, kv_heads=2, max_positions=512
    ),
)
BOOKISH = replace(  # texts take more than prompts
    SCALED,
    encoder=replace(SCALED.encoder, hidden=384, intermediate=1536, max_positions=512),
    decoder=replace(SCALED.decoder, hidden=64, intermediate=256, max_positions=64),
)
WITHOUT_PROMPTS = EngineOptions(prompts=0)


def plan_of(config: DiaConfig, slots: int, element: int = 4) -> MemoryPlan:
    return plan_memory(config, element, DAC_SIZE, slots)


def card(gib: float, fraction: float = 0.9) -> Budget:
    return Budget(int(gib * GIB), CONTEXT, fraction)


def bytes_of(work: Callable[[], object]) -> tuple[int, int]:
    """(peak, what is left) of the CPU's memory that tensors take while `work` runs."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    del result
    return peak, held


def bytes_held(config: DiaConfig, slots: int, options: EngineOptions = WITHOUT_PROMPTS) -> int:
    model = random_model(config)
    return bytes_of(lambda: Engine(model, slots, options))[1]


def longest_requests(config: DiaConfig, count: int) -> list[Sequence]:
    """As long as the model allows, each with a prompt of its own."""
    text, frames = [65] * config.encoder.max_positions, longest_prompt(config)
    return [
        Sequence(text, random_codes(frames, 9, seed), 1, SamplingParams(top_k=1024))
        for seed in range(count)
    ]


# What is allocated


def test_the_real_model_has_the_parameters_that_the_plan_counts() -> None:
    model = empty_dia(FULL, torch.device("meta"), torch.bfloat16)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(FULL) == counted == 1_611_160_576
    assert plan_of(FULL, 1, element=2).weights == 2 * counted


@pytest.mark.parametrize("config", [NINE_CHANNELS, TINY, SCALED])
def test_models_of_other_shapes_are_counted_as_exactly(config: DiaConfig) -> None:
    model = empty_dia(config, torch.device("meta"), torch.float32)
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("few", "many"), [(1, 2), (2, 5), (5, 9)])
def test_every_slot_adds_exactly_the_bytes_that_the_plan_says(few: int, many: int) -> None:
    added = bytes_held(NINE_CHANNELS, many) - bytes_held(NINE_CHANNELS, few)
    assert added == (many - few) * plan_of(NINE_CHANNELS, few).slot


def test_the_caches_are_as_large_as_the_plan_says() -> None:
    cache, plan = Engine(random_model(NINE_CHANNELS), 3).runner.cache, plan_of(NINE_CHANNELS, 3)
    assert cache.k.nbytes + cache.v.nbytes == 3 * plan.self_attention
    assert cache.text_k.nbytes + cache.text_v.nbytes == 3 * plan.cross_attention


def test_kept_prompts_take_exactly_the_bytes_that_the_plan_says() -> None:
    kept = EngineOptions(prompts=6, prompt_frames=PROMPT_FRAMES)
    added = bytes_held(NINE_CHANNELS, 6, kept) - bytes_held(NINE_CHANNELS, 6)
    plan = plan_of(NINE_CHANNELS, 6)
    assert (added, plan.places) == (plan.kept_prompts, 6)


def test_the_tables_of_a_model_are_as_large_as_the_plan_says() -> None:
    model = random_model(NINE_CHANNELS)
    tables = (model.rotary, model.text_rotary, model.cross_rotary, model.unconditional_cross)
    assert plan_of(NINE_CHANNELS, 1).constants == sum(t.nbytes for t in tables)


# What comes and goes: never more than the plan says, and at least half of it


@pytest.mark.parametrize("slots", [1, AT_ONCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SCALED, BOOKISH])
def test_the_longest_prompts_and_texts_start_in_the_memory_that_was_set_aside(
    config: DiaConfig, dtype: torch.dtype, slots: int
) -> None:
    model = empty_dia(config, CPU, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    model.prepare()
    engine = Engine(model, slots, WITHOUT_PROMPTS)
    for sequence in longest_requests(config, slots):
        engine.add(sequence)
    peak, _ = bytes_of(engine.step)
    assert peak <= plan_of(config, slots, dtype.itemsize).prefill <= 2 * peak


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("generation", list(Generation))
def test_a_step_takes_no_more_than_was_set_aside(generation: Generation, slots: int) -> None:
    config = replace(SCALED, generation=generation)
    engine = Engine(random_model(config), slots, WITHOUT_PROMPTS)
    for sequence in longest_requests(config, slots):
        engine.add(sequence)
    engine.step()
    peak, _ = bytes_of(engine.step)
    assert peak <= plan_of(config, slots).step <= 2 * peak


# Another hop, and the widest place elsewhere.
BROAD_FIRST = replace(
    TINY_CODEC, encoder_channels=16, encoder_strides=(4, 4, 8, 2), decoder_strides=(16, 8, 2)
)


@pytest.mark.parametrize("encoding", [False, True])
@pytest.mark.parametrize("config", [TINY_CODEC, BROAD_FIRST])
@pytest.mark.parametrize("frames", [40, 120])
def test_as_many_frames_as_the_codec_may_take_at_once_fit_in_its_memory(
    config: CodecConfig, frames: int, encoding: bool
) -> None:
    codec = Codec(CodecNetwork(config), fingerprint="")
    available = frames * codec_frame(config, 4, encoding)
    assert codec_frames_at_once(config, 4, available, encoding) == frames
    assert codec_frames_at_once(config, 4, available - 1, encoding) == frames - 1
    codes, waveform = random_codes(frames, 9), torch.rand(frames * config.hop_length) - 0.5
    # `decode` has a thread of its own, which the count would not see.
    work = partial(codec.encode, waveform) if encoding else partial(codec.decode_batch, [codes])
    peak, _ = bytes_of(work)
    assert peak <= available <= 2 * peak


def test_a_piece_of_audio_is_longer_than_the_context_that_it_needs_on_both_sides() -> None:
    with torch.device("meta"):
        context = Codec(CodecNetwork(DAC), fingerprint="").context_frames
    assert codec_frames_at_once(DAC, 4, CODEC_PIECE) > 4 * context
    assert codec_frames_at_once(DAC, 4, CODEC_PIECE, encoding=True) > 4 * context


def test_the_engine_starts_as_many_prompts_at_once_as_the_plan_counts() -> None:
    assert prefill.AT_ONCE == AT_ONCE
    assert prefill_positions(FULL, 32) >= longest_prompt(FULL)


def test_voices_of_the_recommended_length_are_kept() -> None:
    frame_rate = DAC.sample_rate / DAC.hop_length
    assert math.ceil(RECOMMENDED_SECONDS[1] * frame_rate) <= PROMPT_FRAMES


# How many slots there are


def test_one_stream_of_the_real_model_and_its_codec_fits_in_4_4_gib() -> None:
    assert plan_of(FULL, 1, element=2).total <= 4.4 * GIB


def test_a_card_gets_as_many_slots_as_fit_and_at_most_32() -> None:
    for gib in CARDS:
        plan = plan_memory(FULL, 2, DAC_SIZE, budget=card(gib))
        assert plan.total <= card(gib).available
        more = plan_of(FULL, plan.slots + 1, element=2)
        assert plan.slots == 32 or more.total > card(gib).available


def test_the_document_shows_what_the_code_gives_each_card() -> None:
    plans = [(gib, plan_memory(FULL, 2, DAC_SIZE, budget=card(gib))) for gib in CARDS]
    rows = [
        f"| {gib} | {plan.slots} | {plan.total / GIB:.2f} | {card(gib).available / GIB:.2f} |"
        for gib, plan in plans
    ]
    documented = re.findall(r"^\| \d+ \|.*$", DOCUMENT.read_text(), re.MULTILINE)
    assert documented == rows


def test_the_document_shows_the_line_that_the_log_has() -> None:
    plan = plan_memory(FULL, 2, DAC_SIZE, budget=card(80))
    assert f"    memory: {plan}; {card(80)}\n" in DOCUMENT.read_text()


def test_slots_that_were_asked_for_are_given_even_above_the_usual_most() -> None:
    assert plan_memory(FULL, 2, DAC_SIZE, 100, card(80)).slots == 100


def test_slots_that_do_not_fit_are_refused_with_the_number_that_would() -> None:
    most = plan_memory(FULL, 2, DAC_SIZE, 1000, Budget(10**15, 0, 1.0))
    assert most.slots == 1000
    with pytest.raises(InvalidConfig) as refused:
        plan_memory(FULL, 2, DAC_SIZE, 64, card(24))
    message = refused.value.message
    assert "performance.slots is 64" in message and "\n" not in message
    assert "27.32 GiB" in message and "21.10 GiB are there" in message
    (fitting,) = re.findall(r"performance.slots of at most (\d+)", message)
    assert plan_memory(FULL, 2, DAC_SIZE, int(fitting), card(24)).slots == int(fitting)
    with pytest.raises(InvalidConfig):
        plan_memory(FULL, 2, DAC_SIZE, int(fitting) + 1, card(24))


@pytest.mark.parametrize(
    ("gib", "element", "fraction", "ways_out"),
    [
        (4, 2, 0.9, "use a larger performance.cuda_memory_fraction or a bigger card"),
        (4, 2, 1.0, "use a bigger card"),
        (8, 4, 1.0, "use bfloat16 as model.dtype or a bigger card"),
    ],
)
@pytest.mark.parametrize("wanted", [None, 1, 8])
def test_a_card_too_small_for_one_slot_is_refused_with_the_ways_out(
    wanted: int | None, gib: float, element: int, fraction: float, ways_out: str
) -> None:
    with pytest.raises(InvalidConfig, match=r"even one slot needs .* GiB are there") as refused:
        plan_memory(FULL, element, DAC_SIZE, wanted, card(gib, fraction))
    assert refused.value.message.endswith(ways_out)
    assert "\n" not in refused.value.message


def test_what_others_hold_is_not_given_away() -> None:
    free = plan_memory(FULL, 2, DAC_SIZE, budget=Budget(16 * GIB, 0, 0.9))
    shared = plan_memory(FULL, 2, DAC_SIZE, budget=Budget(16 * GIB, 4 * GIB, 0.9))
    assert shared.slots < free.slots
    assert Budget(16 * GIB, 20 * GIB, 0.9).available == 0


# At start


@pytest.fixture
def codec() -> Codec:
    with torch.device("meta"):
        return Codec(CodecNetwork(DAC), fingerprint="")


@pytest.mark.parametrize(("gib", "slots"), [(8, 5), (16, 25), (24, 32), (80, 32)])
def test_the_start_asks_the_card_and_logs_how_its_memory_is_shared_out(
    gib: int,
    slots: int,
    codec: Codec,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(startup, "device_memory", lambda device: (gib * GIB, CONTEXT))
    cuda = torch.device("cuda:0")
    with caplog.at_level(logging.INFO, logger="worker.startup"):
        plan = startup.plan_for(FULL, codec, Settings(), cuda, torch.bfloat16)
    assert plan.slots == slots
    shares, details = [record.getMessage() for record in caplog.records]
    assert shares == f"memory: {plan}; {card(gib)}"
    assert shares.startswith("memory: weights 3.00 GiB, codec 0.29 GiB, slots ")
    assert all(part in details for part in ("KV", "prefill", "step", "kept prompts"))


def test_a_card_too_small_stops_the_start(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "device_memory", lambda device: (8 * GIB, CONTEXT))
    with pytest.raises(InvalidConfig, match="bfloat16"):
        startup.plan_for(FULL, codec, Settings(), torch.device("cuda:0"), torch.float32)


def test_a_cpu_has_more_slots_of_a_small_model_or_those_asked_for_and_is_never_too_small(
    codec: Codec,
) -> None:
    asked = Settings(performance=PerformanceSettings(slots=500))
    for config, settings, slots in (
        (FULL, Settings(), 2),
        (NINE_CHANNELS, Settings(), 8),
        (FULL, asked, 500),
    ):
        assert startup.plan_for(config, codec, settings, CPU, torch.float32).slots == slots


def test_others_memory_is_what_neither_is_free_nor_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 80 * GIB

    cuda = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 79 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card())
    assert startup.device_memory(cuda) == (80 * GIB, 6 * GIB)


def test_the_codec_decodes_no_more_at_once_than_its_share_holds(codec: Codec) -> None:
    plan = plan_of(FULL, 8, element=2)
    startup.bound_codec(codec, plan)
    assert codec.frames_at_once == codec_frames_at_once(DAC, 4, plan.codec_piece) == 390
    codec.frames_at_once = 256
    startup.bound_codec(codec, plan)
    assert codec.frames_at_once == 256


# What a job meets


def test_a_job_that_can_never_fit_is_refused_and_one_that_finds_no_slot_waits() -> None:
    engine = Engine(small_model(Generation.JUNE), slots=1)
    most = longest_prompt(engine.config)
    with pytest.raises(InvalidInput):
        engine.add(Sequence([65], random_codes(most, 3), 2))
    waiting = [Sequence([65], random_codes(frames, 3), 1) for frames in (most, 2)]
    done = engine.generate(waiting)
    assert [sequence.codes is not None for sequence in done] == [True, True]

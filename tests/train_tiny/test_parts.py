"""The pieces that the stages are made of."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from builder.train_tiny import data, sentences
from builder.train_tiny.budget import learning_rate
from builder.train_tiny.codes import pack, unpack
from builder.train_tiny.config import FULL, HELD_OUT, SAMPLE_RATE, TRAIN, UNSEEN
from builder.train_tiny.losses import MEL_SCALES, mel_filters, mel_loss
from builder.train_tiny.resample import resample, source_length
from builder.train_tiny.sound import level, speeds, trim
from builder.train_tiny.teaching import fresh_model
from builder.train_tiny.tools import Line, read_lines, write_lines
from worker.codec.network import CodecNetwork

ROOT = Path(__file__).parents[2]
LACKING = ("av", "boto3", "pydantic", "runpod", "scipy", "sentencex", "soundfile", "soxr", "yaml")


def test_the_stages_that_train_need_nothing_that_a_bare_machine_lacks() -> None:
    stages = ", ".join(
        f"builder.train_tiny.{name}" for name in ("data", "codec", "encode", "model", "check")
    )
    block = f"import sys; sys.modules.update(dict.fromkeys({LACKING!r})); import {stages}"
    subprocess.run([sys.executable, "-c", block], check=True, cwd=ROOT)


def test_speaking_needs_no_torch() -> None:
    block = "import sys; sys.modules['torch'] = None; import builder.train_tiny.data"
    subprocess.run([sys.executable, "-c", block], check=True, cwd=ROOT)


@pytest.mark.parametrize("rate", [22_050, 24_000, 27_300, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_its_level_when_resampled(rate: int) -> None:
    def tone(at: int, count: int) -> torch.Tensor:
        return 0.5 * torch.sin(2 * torch.pi * 1_000 * torch.arange(count, dtype=torch.float64) / at)

    made = resample(tone(rate, rate).float()[None], rate)[0]
    assert len(made) == SAMPLE_RATE
    inside = slice(2_000, -2_000)
    assert torch.allclose(made[inside], tone(SAMPLE_RATE, SAMPLE_RATE).float()[inside], atol=2e-3)


def test_resampling_leaves_out_what_would_fold_back() -> None:
    tone = torch.sin(2 * torch.pi * 23_500 * torch.arange(48_000) / 48_000)
    assert resample(tone[None], 48_000)[0, 2_000:-2_000].abs().max() < 0.02


@pytest.mark.parametrize("rate", [22_050, 24_000])
def test_every_pace_gives_at_least_the_samples_asked_for(rate: int) -> None:
    assert rate in speeds(rate)
    assert len(speeds(rate)) >= 5
    for pace in speeds(rate):
        assert 0.87 < pace / rate < 1.15
        source = torch.zeros(1, source_length(FULL.crop, pace))
        assert resample(source, pace).shape[1] >= FULL.crop


def test_trimming_keeps_a_little_silence_on_both_sides() -> None:
    rate = 24_000
    sound = np.zeros(3 * rate, np.float32)
    sound[rate : 2 * rate] = np.sin(np.arange(rate) / 7)
    kept = trim(sound, rate)
    assert len(kept) / rate == pytest.approx(1.12, abs=0.02)
    assert np.sqrt(np.mean(level(kept) ** 2)) == pytest.approx(0.085, rel=1e-3)


def test_packed_codes_take_ten_bits_and_come_back() -> None:
    codes = np.random.default_rng(0).integers(0, 1024, 1_003).astype(np.int16)
    packed = pack(codes)
    assert packed.nbytes == 1_003 + 251
    assert np.array_equal(unpack(packed, len(codes)), codes)


def test_mel_filters_cover_the_spectrum_and_equal_sounds_are_no_distance_apart() -> None:
    for window, bands in MEL_SCALES:
        assert mel_filters(window, bands).shape == (bands, window // 2 + 1)
    noise = torch.randn(2, 4_096, generator=torch.Generator().manual_seed(0)) * 0.1
    assert float(mel_loss(noise, noise)) == 0
    assert float(mel_loss(noise, 0.5 * noise)) == pytest.approx(7 * 0.301, rel=0.1)


def test_the_rate_rises_holds_and_falls() -> None:
    def rate(step: int, fraction: float) -> float:
        return learning_rate(1.0, 100, step, fraction, hold=0.5)

    assert rate(0, 0.0) == pytest.approx(0.01)
    assert rate(500, 0.4) == 1.0
    falling = [rate(500, fraction / 10) for fraction in range(5, 11)]
    assert all(later < sooner for sooner, later in pairwise(falling))
    assert falling[-1] == pytest.approx(0.02)


def test_the_full_sizes_fit_into_their_files() -> None:
    codec = sum(parameter.numel() for parameter in CodecNetwork(FULL.codec).parameters())
    model = fresh_model(FULL.dia, torch.device("cpu"))
    assert 2 * codec <= 16e6
    assert 2 * sum(parameter.numel() for parameter in model.parameters()) <= 40e6


@pytest.mark.parametrize(
    "sentence",
    [
        "In 1999 it rained.",
        "Ask Dr. Brown about it.",
        "NASA said so yesterday.",
        "He said -- well, nothing.",
        "Too short.",
        "It was Plan B, they say.",
        "no capital at the start.",
        "Quite long, " * 15 + "too long.",
    ],
)
def test_sentences_that_voices_read_differently_are_left_out(sentence: str) -> None:
    assert not sentences.is_plain(sentence)


def test_plain_sentences_are_taken_out_of_a_paragraph() -> None:
    found = sentences.plain_sentences(
        "I think it's late. It is 7 p.m. now.\nWhere did Anna go, then?"
    )
    assert list(found) == ["I think it's late.", "Where did Anna go, then?"]


def test_words_kept_from_training_are_in_no_training_sentence() -> None:
    words = [f"w{chr(97 + i)}{chr(97 + j)}x" for i in range(20) for j in range(20)]
    chance = random.Random(0)
    made = [*sentences.about_words(words, 300, chance), *sentences.dialogue(300, chance)]
    use = sentences.split([one for one in made if sentences.is_plain(one)], words, chance)
    assert {each for _, each in use} == {TRAIN, HELD_OUT, UNSEEN}
    spoken = {kind: " ".join(s.lower() for s, u in use if u == kind) for kind in (TRAIN, UNSEEN)}
    unseen = [s.split()[-1][:-1] for s, u in use if u == UNSEEN and s.startswith("Everyone was")]
    assert unseen
    assert not any(word in spoken[TRAIN] for word in unseen)


def test_lines_survive_their_file(tmp_path: Path) -> None:
    lines = [Line("A café is open.", TRAIN, "ə kæfˈA", [1, 0, 2])]
    write_lines(tmp_path, lines)
    assert read_lines(tmp_path) == lines


def test_what_is_kept_from_training_is_spoken_first_and_all_is_spoken_by_both() -> None:
    lines = [Line(f"Line {i}.", HELD_OUT if i % 50 == 0 else TRAIN, "", []) for i in range(200)]
    todo = data.tasks(lines, Path())
    assert sum(line.use == HELD_OUT for line in todo[0].lines) == 4
    said = [(task.speaker, line.text) for task in todo for line in task.lines]
    assert len(set(said)) == len(said) == 2 * len(lines)
    assert [task.number for task in todo] == list(range(len(todo)))

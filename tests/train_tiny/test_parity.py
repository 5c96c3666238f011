"""What is trained is what runs: teacher forcing against the engine, token by token."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from builder.train_tiny.attend import encode_texts, hidden_states
from builder.train_tiny.codes import Corpus, Utterance
from builder.train_tiny.config import FEMALE, MALE, SMOKE, TRAIN
from builder.train_tiny.guide import Span, guide_for, weight
from builder.train_tiny.layout import IGNORED, collate, delayed, length_of, predicted
from builder.train_tiny.samples import Composer, Sample, locate, render
from builder.train_tiny.teaching import fresh_model, losses_of
from tests.models import shape_for
from worker.dia.delay import UNKNOWN, delay_prompt
from worker.dia.model import DiaModel
from worker.dia.tokenizer import encode_text
from worker.engine.kernels.plain import plain_ops
from worker.engine.progress import Frames
from worker.engine.runner import Runner
from worker.engine.sequence import SamplingParams, Sequence
from worker.text import Turn, model_text

CONFIG = SMOKE.dia
CPU = torch.device("cpu")
TEXT = encode_text("[S1] The small lamp. [S2] Over a harbor. [S1]")


def codes_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 9)).astype(np.int16)


def sample_of(frames: int, prompt: int, text: list[int] = TEXT) -> Sample:
    return Sample(text, codes_of(frames, seed=frames), prompt)


@pytest.fixture(scope="module")
def model() -> DiaModel:
    torch.manual_seed(3)
    return fresh_model(CONFIG, CPU).eval().requires_grad_(False)


def run_engine(model: DiaModel, sample: Sample) -> tuple[Tensor, Tensor]:
    """The engine made to say a sample: its history [T, C], and its logits [2, T, C, V]."""
    frames = torch.from_numpy(sample.codes).long()
    wanted = delayed(frames, CONFIG)
    prompt = frames[: sample.prompt_frames]
    new = sample.frames - sample.prompt_frames
    sequence = Sequence(sample.text_ids, prompt, new + 50, SamplingParams())
    logits = []

    def say(*_: object) -> Tensor:
        at = int(runner.state.position[0]) + 1
        # Junk wherever the engine must know better; EOS only where channel 0 chooses it.
        said = torch.full_like(wanted[at], 7)
        chosen = predicted(sample.frames, sample.prompt_frames, CONFIG)[at]
        return torch.where(chosen, wanted[at], said).unsqueeze(0)

    runner = Runner(model, slots=1, ops=replace(plain_ops(CONFIG, CPU), draw=say))
    runner.start([(0, sequence)])
    said = Frames(CONFIG, sample.prompt_frames, sequence.max_new_frames)
    while not said.finished:
        runner.step(shape_for(runner, sequence))
        assert runner.logits is not None
        logits.append(runner.logits[:, 0].clone())
        said.push(runner.look(1, 1).read()[0])
    history = runner.state.history[0, : int(runner.state.position[0]) + 1]
    assert torch.equal(said.all(), frames[sample.prompt_frames :])
    return history, torch.stack(logits, dim=1)


@pytest.mark.parametrize("prompt", [0, 1, 9, 20], ids=lambda prompt: f"prompt of {prompt}")
def test_the_layout_is_what_the_engine_writes_when_it_says_the_same(
    model: DiaModel, prompt: int
) -> None:
    sample = sample_of(prompt + 13, prompt)
    history, _ = run_engine(model, sample)
    wanted = delayed(torch.from_numpy(sample.codes), CONFIG)
    # The engine stops one position short: the last channel's EOS is never read.
    assert torch.equal(history, wanted[: len(history)])
    assert len(history) == len(wanted) - 1


@pytest.mark.parametrize("prompt", [0, 9], ids=lambda prompt: f"prompt of {prompt}")
def test_teacher_forced_logits_are_those_of_the_engines_steps(model: DiaModel, prompt: int) -> None:
    sample = sample_of(prompt + 13, prompt)
    neighbour = sample_of(
        40, 0, encode_text("[S1] A longer text, so that the other is padded here.")
    )
    silent = Sample([0] * len(TEXT), sample.codes, prompt)
    with torch.inference_mode():
        # Three rows of different lengths, so that padding of texts and of frames takes part.
        batch = collate([sample, neighbour, silent], CONFIG)
        forced = model.logits(hidden_states(model, batch)[0])
    _, logits = run_engine(model, sample)
    steps = slice(prompt, prompt + logits.shape[1])
    assert torch.allclose(forced[0, steps], logits[1], atol=2e-4)
    assert torch.allclose(forced[2, steps], logits[0], atol=2e-4)


def test_targets_are_what_the_engine_leaves_to_the_model() -> None:
    frames, prompt = 30, 6
    sample = sample_of(frames, prompt)
    batch = collate([sample], CONFIG)
    targets = batch.targets[0]
    laid = delay_prompt(torch.from_numpy(sample.codes[:prompt]), CONFIG.delays, CONFIG.bos_id)
    forced = laid != UNKNOWN
    end = frames + 1
    for position in range(1, length_of(sample, CONFIG)):
        for channel, delay in enumerate(CONFIG.delays):
            target = int(targets[position - 1, channel])
            if position < len(forced) and forced[position, channel]:
                assert target == IGNORED
            elif position < end + delay:
                assert target == sample.codes[position - delay - 1, channel]
            elif channel == 0 and position == end:
                assert target == CONFIG.eos_id
            else:
                assert target == IGNORED


def test_after_the_end_each_channel_reads_eos_once_and_then_padding() -> None:
    tokens = delayed(torch.from_numpy(codes_of(12)), CONFIG)
    for channel, delay in enumerate(CONFIG.delays):
        column = tokens[:, channel].tolist()
        assert column[: delay + 1] == [CONFIG.bos_id] * (delay + 1)
        assert column[13 + delay] == CONFIG.eos_id
        assert set(column[14 + delay :]) <= {CONFIG.pad_id}
        assert max(column[delay + 1 : 13 + delay]) < 1024


def test_padding_of_a_batch_is_never_a_target() -> None:
    short, long = sample_of(10, 0), sample_of(200, 4)
    batch = collate([short, long], CONFIG)
    assert (batch.targets[0, length_of(short, CONFIG) :] == IGNORED).all()
    assert batch.tokens.shape == batch.targets.shape
    assert int(batch.text_lengths[0]) == len(TEXT)


def test_a_padded_text_is_encoded_as_it_is_alone(model: DiaModel) -> None:
    ids = torch.tensor(TEXT)
    padded = torch.zeros(2, len(ids) + 11, dtype=torch.long)
    padded[:, : len(ids)] = ids
    real = torch.arange(padded.shape[1]).expand(2, -1) < len(ids)
    encoded = encode_texts(model, padded, real)
    assert torch.allclose(encoded[1, : len(ids)], model.encode(ids), atol=1e-5)


@pytest.mark.parametrize("closing", [False, True], ids=["no closing tag", "closing tag"])
@pytest.mark.parametrize("who", ["1", "12", "1122", "1212", "11"])
def test_the_text_of_a_sample_is_what_the_worker_would_write(who: str, closing: bool) -> None:
    spoken = [(f"S{number}", f"Sentence {index}.") for index, number in enumerate(who)]
    turns = [Turn(f"S{number}", f"Sentence {index}.") for index, number in enumerate(who)]  # type: ignore[arg-type]
    wanted = model_text([], turns)
    if not closing and len(set(who)) > 1:
        wanted = wanted[: -len(" [S1]")]
    assert render(spoken, closing) == wanted


def composer(seed: int) -> Composer:
    voices = (FEMALE, MALE, f"{FEMALE}+", "third")
    utterances = [
        Utterance(f"It is {voice.strip('+')} number {index}.", voice, TRAIN, codes_of(20 + index))
        for voice in voices
        for index in range(4)
    ]
    return Composer(Corpus(utterances, codes_of(40)), 400, 1024, random.Random(seed))


def test_a_sentence_is_looked_for_where_it_stands_in_the_text() -> None:
    spoken = [("S1", "One. Two."), ("S1", "Two."), ("S2", "One. Two.")]
    text = render(spoken, closing=True)
    ids = encode_text(text)
    found = [
        bytes(ids[first:last]).decode() for first, last in locate(text, [b for _, b in spoken])
    ]
    assert found == ["One. Two.", "Two.", "One. Two."]


def test_every_frame_of_a_sentence_is_guided_to_its_bytes_and_no_pause_is() -> None:
    made = composer(5)
    samples = [made.compose() for _ in range(40)]
    guide = collate(samples, CONFIG).guide
    for row, sample in enumerate(samples):
        assert bool(sample.spans) == any(sample.text_ids)
        guided = guide.centre[row] >= 0
        assert int(guided.sum()) == sum(one.last_frame - one.first_frame for one in sample.spans)
        for span in sample.spans:
            looked = guide.centre[row, span.first_frame : span.last_frame]
            assert (looked.diff() > 0).all()
            assert span.first_byte < float(looked[0])
            assert float(looked[-1]) < span.last_byte
            said = bytes(sample.text_ids[span.first_byte : span.last_byte]).decode()
            assert said.endswith(f"number {span.last_frame - span.first_frame - 20}.")


def test_attention_on_the_diagonal_costs_nothing_and_elsewhere_all() -> None:
    guide = guide_for([[Span(2, 42, 0, 40)], []], 50)
    diagonal = torch.zeros(2, 50, 60)
    diagonal[:, torch.arange(40), 2 + torch.arange(40)] = 1
    assert float(guide.astray(diagonal)) < 0.01
    assert float(guide.astray(diagonal.flip(1))) > 0.5
    assert float(guide.astray(torch.full((2, 50, 60), 1 / 60))) > 0.5
    assert float(guide_for([[]], 50).astray(diagonal)) == 0


def test_guidance_moves_the_attention_and_fades() -> None:
    torch.manual_seed(4)
    pupil = fresh_model(CONFIG, CPU)
    made = composer(6)
    batch = collate([made.compose() for _ in range(12)], CONFIG)
    optimiser = torch.optim.Adam(pupil.parameters(), 3e-3)
    astray = []
    for _ in range(30):
        _, off = losses_of(pupil, batch)
        optimiser.zero_grad()
        off.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        astray.append(off.item())
    assert astray[-1] < 0.7 * astray[0]
    assert weight(0) > weight(0.2) > weight(0.9) == 0


def test_samples_are_prompted_and_textless_as_often_as_the_recipe_says() -> None:
    made = composer(1)
    samples = [made.compose() for _ in range(1500)]
    prompted = sum(sample.prompt_frames > 0 for sample in samples) / len(samples)
    textless = sum(not any(sample.text_ids) for sample in samples) / len(samples)
    assert prompted == pytest.approx(0.5, abs=0.05)
    assert textless == pytest.approx(0.12, abs=0.03)
    assert all(sample.prompt_frames < sample.frames <= 400 for sample in samples)
    assert all(sample.text_ids[0] in (0, 1) for sample in samples)


def test_without_a_prompt_the_voices_are_the_usual_ones() -> None:
    made = composer(2)
    for sample in (made.compose() for _ in range(300)):
        text = bytes(sample.text_ids).decode()
        if sample.prompt_frames == 0 and any(sample.text_ids):
            assert "third" not in text
            for turn in text.split("\x01")[1:]:
                mine, _, others = turn.partition("\x02")
                assert MALE not in mine
                assert FEMALE not in others

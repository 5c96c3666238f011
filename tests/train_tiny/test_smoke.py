"""The stages that train dia-tiny, one after the other, on tones and at the least size."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from builder.train_tiny import check, codec, data, encode, model
from builder.train_tiny.averaging import current
from builder.train_tiny.budget import Budget, Progress
from builder.train_tiny.codec_state import CodecState
from builder.train_tiny.codes import Corpus, read_codes, write_codes
from builder.train_tiny.config import FEMALE, HELD_OUT, MALE, SMOKE, TRAIN
from builder.train_tiny.crops import Crops
from builder.train_tiny.model import ModelTrainer, batches_of, read_progress
from builder.train_tiny.recordings import read_recordings
from builder.train_tiny.teaching import fresh_model, weighted
from worker.codec.checkpoint import load_codec
from worker.engine.sequence import SamplingParams
from worker.startup import is_trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data.make_data(data.smoke_lines(), None, folder, minutes=1.0, processes=1)
    return folder


@pytest.fixture(scope="module")
def codec_options(
    recorded: Path, tmp_path_factory: pytest.TempPathFactory
) -> codec.argparse.Namespace:
    return codec_arguments(recorded, tmp_path_factory.mktemp("codec"))


def codec_arguments(recorded: Path, out: Path) -> codec.argparse.Namespace:
    return codec.arguments(["--smoke", f"--data={recorded}", f"--out={out}", f"--tools={out}"])


@pytest.fixture(scope="module")
def trained_codec(codec_options: codec.argparse.Namespace) -> CodecState:
    return codec.run(SMOKE, CPU, codec_options)


@pytest.fixture(scope="module")
def codec_folder(trained_codec: CodecState, codec_options: codec.argparse.Namespace) -> Path:
    return Path(codec_options.out) / "final"


@pytest.fixture(scope="module")
def corpus(recorded: Path, codec_folder: Path) -> Corpus:
    return encode.encode_all(load_codec(codec_folder, CPU), read_recordings(recorded), 4.0, 1.0)


@pytest.fixture(scope="module")
def model_options(
    corpus: Corpus, codec_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> model.argparse.Namespace:
    folder = tmp_path_factory.mktemp("model")
    write_codes(folder / "codes", corpus)
    names = {"codes": folder / "codes", "codec": codec_folder, "out": folder / "dia-tiny"}
    return model.arguments(["--smoke", *(f"--{name}={path}" for name, path in names.items())])


@pytest.fixture(scope="module")
def trained_model(model_options: model.argparse.Namespace) -> ModelTrainer:
    return model.run(model_options)


def test_the_data_has_every_sentence_in_both_voices(recorded: Path) -> None:
    spoken = {(one.speaker, one.text) for one in read_recordings(recorded)}
    assert spoken == {(voice, line.text) for voice in (FEMALE, MALE) for line in data.smoke_lines()}


def test_shards_that_are_there_are_not_made_again(recorded: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in recorded.iterdir()}
    hours = data.make_data(data.smoke_lines(), None, recorded, minutes=1.0, processes=1)
    assert hours == 0
    assert {file: file.stat().st_mtime_ns for file in recorded.iterdir()} == before


def test_the_saved_codec_is_the_average_without_weight_norm(
    trained_codec: CodecState, codec_folder: Path
) -> None:
    saved = dict(load_codec(codec_folder, CPU).network.named_parameters())
    for name, average in trained_codec.average.network.named_parameters():
        assert torch.allclose(saved[name], average, atol=1e-2, rtol=1e-3), name


def test_the_files_of_the_codec_are_in_half_precision(codec_folder: Path) -> None:
    network = load_codec(codec_folder, CPU, torch.float16).network
    size = sum(parameter.numel() for parameter in network.parameters())
    assert (codec_folder / "model.safetensors").stat().st_size < 2 * size + 40_000


@pytest.mark.parametrize("carried", [False, True], ids=["same machine", "another machine"])
def test_a_second_call_of_the_codec_goes_on_at_the_step(
    trained_codec: CodecState, recorded: Path, tmp_path: Path, carried: bool
) -> None:
    trained_codec.save(tmp_path)
    if carried:
        (tmp_path / "state.pt").unlink()
    opened = CodecState.open(tmp_path, SMOKE, CPU, None)
    expected = dict(trained_codec.network.named_parameters())
    for name, parameter in opened.network.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-2, rtol=1e-2), name
    before = opened.progress.step
    after = codec.run(SMOKE, CPU, codec_arguments(recorded, tmp_path)).progress.step
    assert after == before + codec.SMOKE_STEPS


def test_the_codec_takes_in_what_is_spoken_while_it_learns(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    first, *others = sorted(recorded.glob("*.json"))

    def arrive(index: Path) -> None:
        for file in (index.with_suffix(".npy"), index):
            (folder / file.name).write_bytes(file.read_bytes())

    arrive(first)
    seen = []
    monkeypatch.setattr(codec, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(codec.CodecState, "save", lambda *_: [arrive(each) for each in others])
    monkeypatch.setattr(codec.Crops, "add", lambda _, more: seen.append(len(more)))
    monkeypatch.setattr(codec.Crops, "batch", lambda _: torch.zeros(SMOKE.crops, SMOKE.crop))
    codec.run(SMOKE, CPU, codec_arguments(folder, tmp_path))
    training = sum(one.use == TRAIN for one in read_recordings(recorded))
    assert 0 < seen[0] < training
    assert sum(seen[:2]) == training
    assert not any(seen[2 : codec.SMOKE_STEPS])


def test_the_codec_waits_for_the_first_recordings(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = sorted(recorded.iterdir())

    def wait(_: float) -> None:
        for file in every:
            (tmp_path / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(codec.time, "sleep", wait)
    found = codec.begin_with(codec.Shards(tmp_path), 1.0, patience_s=60.0)
    assert len(found) == len(read_recordings(recorded))


def test_the_codec_learns_a_batch_by_heart(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(codec, "WARM_UP", 1)
    monkeypatch.setattr(codec, "PEAK_RATE", 3e-3)
    state = CodecState(SMOKE, CPU, None)
    crops = Crops(read_recordings(recorded), SMOKE.crop, SMOKE.crops, CPU, seed=1)
    batch = crops.batch()
    crops.batch = lambda: batch  # type: ignore[method-assign]
    budget = Budget(state.progress, 1.0, 1.0, steps=25)
    trainer = codec.CodecTrainer(state, crops, budget, adversaries_from=1.1)
    mels = [float(trainer.step()["mel"]) for _ in range(25)]
    assert mels[-1] < 0.7 * mels[0]


def test_codes_stay_as_they_are_where_only_the_decoder_learns(
    trained_codec: CodecState, recorded: Path, tmp_path: Path
) -> None:
    trained_codec.save(tmp_path)
    options = codec_arguments(recorded, tmp_path)
    after = codec.run(
        SMOKE, CPU, codec.argparse.Namespace(**{**vars(options), "only_decoder": True})
    )
    before = dict(trained_codec.network.named_parameters())
    changed = {
        name.partition(".")[0]
        for name, parameter in after.network.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    assert changed == {"decoder"}


def test_a_codec_may_begin_with_the_codes_of_another_and_a_decoder_of_its_own(
    codec_folder: Path, tmp_path: Path
) -> None:
    given = load_codec(codec_folder, CPU).network
    fresh = CodecState.open(tmp_path, SMOKE, CPU, codec_folder, fresh_decoder=True).network
    for name, parameter in given.named_parameters():
        alike = torch.allclose(current(fresh, name), parameter, atol=1e-6)
        assert alike == (not name.startswith("decoder.") or "alpha" in name), name


def test_codes_survive_their_files(corpus: Corpus, tmp_path: Path) -> None:
    write_codes(tmp_path, corpus)
    again = read_codes(tmp_path)
    assert np.array_equal(again.silence, corpus.silence)
    for one, other in zip(again.utterances, corpus.utterances, strict=True):
        assert (one.text, one.speaker, one.use) == (other.text, other.speaker, other.use)
        assert np.array_equal(one.codes, other.codes)


def test_codes_in_a_batch_are_those_of_the_codec_alone(
    recorded: Path, codec_folder: Path, corpus: Corpus
) -> None:
    alone = load_codec(codec_folder, CPU)
    one = next(r for r in read_recordings(recorded) if r.speaker == FEMALE)
    waveform = encode.resample(
        torch.from_numpy(one.samples[None].copy()).float() / 32_767, one.rate
    )
    wanted = alone.encode(waveform[0]).numpy()
    have = next(u.codes for u in corpus.utterances if (u.speaker, u.text) == (FEMALE, one.text))
    assert len(have) == len(wanted)
    # The first codebook's choices; the end sees the padding, and ties fall either way.
    assert (have[:-12, 0] == wanted[:-12, 0]).mean() > 0.98


def test_some_training_sentences_have_voices_of_another_pace(corpus: Corpus) -> None:
    voices = {one.speaker for one in corpus.utterances if one.use == TRAIN}
    assert voices > {FEMALE, MALE}
    assert {one.speaker for one in corpus.utterances if one.use == HELD_OUT} == {FEMALE, MALE}


def test_the_model_learns_a_batch_by_heart(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(model, "WARM_UP", 1)
    monkeypatch.setattr(model, "PEAK_RATE", 1e-2)
    budget = Budget(Progress(), 1.0, 1.0, steps=30)
    trainer = ModelTrainer(fresh_model(SMOKE.dia, CPU), budget)
    batch = next(batches_of(corpus.only(TRAIN), SMOKE, 3))
    losses = [float(weighted(trainer.step(batch))) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_fresh_model_knows_nothing_and_says_so(corpus: Corpus) -> None:
    torch.manual_seed(0)
    trainer = ModelTrainer(fresh_model(SMOKE.dia, CPU), Budget(Progress(), 1.0, 1.0, steps=1))
    loss, _ = trainer.check(list(islice(batches_of(corpus.only(TRAIN), SMOKE, 3), 1)))
    assert float(weighted(loss)) == pytest.approx(np.log(1028), rel=0.15)


@pytest.mark.parametrize("carried", [False, True], ids=["same machine", "another machine"])
def test_a_second_call_of_the_model_goes_on_at_the_step(
    trained_model: ModelTrainer,
    model_options: model.argparse.Namespace,
    tmp_path: Path,
    carried: bool,
) -> None:
    options = model.argparse.Namespace(**{**vars(model_options), "out": tmp_path})
    trained_model.save(tmp_path, options.codec)
    if carried:
        (tmp_path / "state.pt").unlink()
    before = read_progress(tmp_path).step
    assert before >= model.SMOKE_STEPS
    opened = model.open_trainer(tmp_path, SMOKE, CPU, Budget(read_progress(tmp_path), 1, 1, 1))
    source = trained_model.average.network if carried else trained_model.model
    for name, parameter in opened.model.named_parameters():
        assert torch.allclose(parameter, source.get_parameter(name), atol=2e-2), name
    assert model.run(options).budget.progress.step == before + model.SMOKE_STEPS


def test_the_trained_folder_loads_as_the_worker_does_and_speaks(
    trained_model: ModelTrainer, model_options: model.argparse.Namespace
) -> None:
    folder = Path(model_options.out)
    assert is_trained(folder / "config.json")
    assert json.loads((folder / "config.json").read_text())["trained"] is True
    texts = check.texts_of(data.smoke_lines(), 2)
    report, waveforms = check.check(folder, texts, SamplingParams(temperature=1.0), room=0.3)
    assert report.texts == len(waveforms) == 2
    assert all(len(waveform) and waveform.abs().max() <= 1 for waveform in waveforms)


def test_the_smoke_crops_are_as_loud_and_as_long_as_asked(recorded: Path) -> None:
    crops = Crops(read_recordings(recorded), SMOKE.crop, SMOKE.crops, CPU, seed=2)
    batch: Tensor = crops.batch()
    assert batch.shape == (SMOKE.crops, SMOKE.crop)
    assert 0 < float(batch.abs().max()) <= 1


def test_a_schedule_ends_with_its_minutes() -> None:
    budget = Budget(Progress(step=5, minutes=9.0), minutes=9.0, schedule=9.0)
    assert budget.fraction == 1
    assert budget.spent


def test_the_same_chance_gives_the_same_paces(recorded: Path) -> None:
    recordings = read_recordings(recorded)
    first, second = (encode.paced(recordings, random.Random(4)) for _ in range(2))
    assert first == second

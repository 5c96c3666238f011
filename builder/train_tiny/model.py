"""Stage 5: trains the small Dia on the codes, by teacher forcing.

    python -m builder.train_tiny.model --minutes 9 --schedule-minutes 25

Each call goes on where the last one stopped. Writes a folder that the worker loads; on another
machine, a call with that folder in `--out` goes on from its weights, with a new optimiser.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import torch

from builder.model_folder import CONFIG, WEIGHTS, write_model_folder
from builder.train_tiny import guide
from builder.train_tiny.averaging import Average
from builder.train_tiny.budget import Budget, Progress, learning_rate
from builder.train_tiny.codes import Corpus, read_codes
from builder.train_tiny.config import CODEC, CODES, FULL, HELD_OUT, MODEL, SMOKE, TRAIN, Sizes
from builder.train_tiny.layout import Batch, batches
from builder.train_tiny.samples import Composer
from builder.train_tiny.teaching import fresh_model, losses_of, weighted
from worker.codec.checkpoint import load_codec
from worker.dia.checkpoint import load_dia
from worker.dia.model import DiaModel

logger = logging.getLogger(__name__)

PEAK_RATE, WARM_UP, HOLD = 1e-3, 300, 0.15
BETAS, WEIGHT_DECAY, LARGEST_GRADIENT = (0.9, 0.95), 0.05, 1.0
AVERAGE_DECAY = 0.999
LOG_EVERY, CHECK_EVERY, SAVE_EVERY_S = 50, 500, 150.0
CHECKS = 4  # held-out batches
SMOKE_STEPS = 8
PROGRESS, STATE = "progress.json", "state.pt"


class ModelTrainer:
    """A model, its average and its optimiser.

    Args:
        model: prepared, in float32.
        budget: how far the run is.
    """

    def __init__(self, model: DiaModel, budget: Budget) -> None:
        self.model, self.budget = model.train().requires_grad_(True), budget
        self.average = Average(copy.deepcopy(model), AVERAGE_DECAY)
        self.device = model.decoder.logits.weight.device
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)

    def step(self, batch: Batch) -> torch.Tensor:
        """One batch; returns the channels' losses."""
        step, fraction = self.budget.tick(), self.budget.fraction
        rate = learning_rate(PEAK_RATE, WARM_UP, self.budget.since_start, fraction, HOLD)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with self._autocast():
            losses, astray = losses_of(self.model, batch.to(self.device))
        self.optimiser.zero_grad(set_to_none=True)
        total = weighted(losses) + guide.weight(fraction) * astray
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.average.update(self.model, step)
        return losses.detach()

    @torch.no_grad()
    def check(self, held_out: list[Batch]) -> tuple[torch.Tensor, float]:
        """[C] the average's losses on sentences that it was not trained on.

        And how much of the guided heads' attention goes astray, 0 to 1.
        """
        network = self.average.network
        assert isinstance(network, DiaModel)
        with self._autocast():
            found = [losses_of(network, batch.to(self.device)) for batch in held_out]
        losses, astray = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
        return losses, float(astray)

    def save(self, folder: Path, codec: Path) -> None:
        """Writes the folder that the worker loads, and `state.pt` to go on from here."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRESS).write_text(json.dumps(self.budget.progress.to_json()) + "\n")
        torch.save(
            {name: part.state_dict() for name, part in self._parts().items()}, folder / STATE
        )
        network = self.average.network
        assert isinstance(network, DiaModel)
        halved = load_codec(codec, torch.device("cpu"), torch.float16)
        write_model_folder(folder, network, halved, trained=True)

    def restore(self, state: Path) -> None:
        """Takes up what `save` left on this machine."""
        saved = torch.load(state, map_location=self.device, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "average": self.average.network,
            "optimiser": self.optimiser,
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def open_trainer(folder: Path, sizes: Sizes, device: torch.device, budget: Budget) -> ModelTrainer:
    """From nothing, from the weights in the folder, or from all that a call before left there."""
    progress = budget.progress
    if (folder / CONFIG).is_file() and not (folder / STATE).is_file():
        model, _ = load_dia(folder / WEIGHTS, sizes.dia, device, torch.float32)
    else:
        model = fresh_model(sizes.dia, device)
    trainer = ModelTrainer(model, budget)
    if (folder / STATE).is_file():
        trainer.restore(folder / STATE)
    logger.info("model at step %d, %.1f minutes", progress.step, progress.minutes)
    return trainer


def read_progress(folder: Path) -> Progress:
    """How far the folder is; at the beginning if it is not there."""
    file = folder / PROGRESS
    return Progress(**json.loads(file.read_text())) if file.is_file() else Progress()


def ahead(source: Iterator[Batch], depth: int = 8) -> Iterator[Batch]:
    """The same batches, made in another thread while the device works."""
    ready: Queue[Batch] = Queue(depth)

    def fill() -> None:
        for batch in source:
            ready.put(batch)

    Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


def batches_of(corpus: Corpus, sizes: Sizes, seed: int) -> Iterator[Batch]:
    """Endless batches of a corpus."""
    text = sizes.dia.encoder.max_positions
    composer = Composer(corpus, sizes.max_frames, text, random.Random(seed))
    return batches(composer, sizes.dia, sizes.batch_frames, sizes.pool)


def train(trainer: ModelTrainer, corpus: Corpus, sizes: Sizes, folder: Path, codec: Path) -> None:
    """Steps until the call's time is up; saves now and then, and at the end."""
    progress = trainer.budget.progress
    held_out = list(islice(batches_of(corpus.only(HELD_OUT), sizes, 0), CHECKS))
    started = saved = time.monotonic()
    for batch in ahead(batches_of(corpus.only(TRAIN), sizes, progress.step + 1)):
        if trainer.budget.spent:
            break
        losses = trainer.step(batch)
        if progress.step % LOG_EVERY == 0:
            pace = trainer.budget.since_start / (time.monotonic() - started)
            _log(f"train, {pace:.1f}/s", trainer, losses)
        if progress.step % CHECK_EVERY == 0:
            _log_check(trainer, held_out)
        if time.monotonic() - saved > SAVE_EVERY_S:
            trainer.save(folder, codec)
            saved = time.monotonic()
    _log_check(trainer, held_out)
    trainer.save(folder, codec)


def _log_check(trainer: ModelTrainer, held_out: list[Batch]) -> None:
    losses, astray = trainer.check(held_out)
    _log(f"held out, {astray:.0%} astray", trainer, losses)


def _log(what: str, trainer: ModelTrainer, losses: torch.Tensor) -> None:
    each = " ".join(f"{loss:.3f}" for loss in losses.tolist())
    step, done = trainer.budget.progress.step, 100 * trainer.budget.fraction
    logger.info("%d (%.0f %%) %s: %.4f (%s)", step, done, what, float(weighted(losses)), each)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description="trains the small Dia")
    parser.add_argument("--codes", type=Path, default=CODES)
    parser.add_argument("--codec", type=Path, default=CODEC / "final", help="that made the codes")
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--schedule-minutes", type=float, default=25.0, help="of all calls")
    parser.add_argument("--smoke", action="store_true", help="a few steps at the least size")
    return parser.parse_args(given)


def run(options: argparse.Namespace) -> ModelTrainer:
    """The whole stage."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SMOKE if options.smoke else FULL
    progress = read_progress(options.out)
    steps = SMOKE_STEPS if options.smoke else None
    budget = Budget(progress, options.minutes, options.schedule_minutes, steps)
    trainer = open_trainer(options.out, sizes, device, budget)
    train(trainer, read_codes(options.codes), sizes, options.out, options.codec)
    return trainer


def main() -> None:
    """Trains the model."""
    options = arguments()
    if options.smoke:
        torch.set_num_threads(1)  # a team takes longer to wake than such a run to finish
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(options)
    logger.info("%s: remove %s before it is shipped", options.out, STATE)


if __name__ == "__main__":
    main()

"""Stage 3: trains the small DAC on the recordings, reconstruction first, then against adversaries.

    python -m builder.train_tiny.codec --minutes 9 --schedule-minutes 27

Each call goes on where the last one stopped; `--schedule-minutes` is the length of all calls
together, by which the learning rate falls and the adversaries join. Begin with `--start` to build
on weights that exist. The data stage may still be running: what it makes is taken in as it comes.
"""

from __future__ import annotations

import argparse
import logging
import time
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from builder.train_tiny.budget import Budget, learning_rate
from builder.train_tiny.codebooks import CodebookWatch
from builder.train_tiny.codec_state import CodecState
from builder.train_tiny.config import CODEC, DATA, FULL, SMOKE, TOOLS, TRAIN, Sizes
from builder.train_tiny.crops import Crops
from builder.train_tiny.losses import (
    adversarial_loss,
    discriminator_loss,
    mel_loss,
    reconstruction_loss,
)
from builder.train_tiny.recordings import Recording, Shards, read_extra
from worker.codec.network import Quantized, Snake

logger = logging.getLogger(__name__)

PEAK_RATE, WARM_UP, HOLD = 4e-4, 200, 0.5
RESTART_EVERY, RESTART_UNTIL = 200, 0.8  # steps; part of the run
LARGEST_GRADIENT, LARGEST_JUDGING_GRADIENT = 1e3, 10.0
LOG_EVERY, SAVE_EVERY_S = 100, 120.0
FIRST_S, PATIENCE_S = 600.0, 120.0  # of speech to begin with; for how long it is waited for
SMOKE_STEPS = 6


class CodecTrainer:
    """Takes steps.

    Args:
        state: what is trained.
        crops: where batches come from.
        budget: how far the run is.
        adversaries_from: part of the run after which the discriminators join.
        precision: of the codec on a GPU, `tf32` or `bf16`; the discriminators take bf16 there,
            and the quantizer and all spectra float32 everywhere.
        only_decoder: leaves encoder and codebooks, and thereby all codes, as they are.
    """

    def __init__(
        self,
        state: CodecState,
        crops: Crops,
        budget: Budget,
        adversaries_from: float,
        precision: str = "tf32",
        only_decoder: bool = False,
    ) -> None:
        self.state, self.crops, self.budget = state, crops, budget
        self.watch = CodebookWatch(state.network)
        self._adversaries_from = adversaries_from
        self._gpu = state.device.type == "cuda"
        self._half = self._gpu and precision == "bf16"
        self._only_decoder = only_decoder
        for part in (state.network.encoder, state.network.quantizer):
            part.requires_grad_(not only_decoder)

    def step(self) -> dict[str, Tensor]:
        """One batch; returns the losses."""
        state, step, fraction = self.state, self.budget.tick(), self.budget.fraction
        rate = learning_rate(PEAK_RATE, WARM_UP, self.budget.since_start, fraction, HOLD)
        real = self.crops.batch()
        made, quantized = self.reconstruct(real)
        losses = reconstruction_loss(made, real, quantized)
        if fraction >= self._adversaries_from:
            losses |= self._judge(made, real, rate)
        descend(state.network, state.optimiser, _total(losses), rate, LARGEST_GRADIENT)
        self.watch.count(quantized)
        restarts = fraction < RESTART_UNTIL and not self._only_decoder
        if restarts and step % RESTART_EVERY == 0:
            self.watch.restart(quantized)
        state.average.update(state.network, step)
        return {name: loss.detach() for name, loss in losses.items()}

    def reconstruct(self, real: Tensor) -> tuple[Tensor, Quantized]:
        """[B, N] → the same, coded and decoded, and what the quantizer chose."""
        network = self.state.network
        with self._autocast(self._half):
            latent = network.encoder(real.unsqueeze(1))
        quantized: Quantized = network.quantizer(latent.float())
        with self._autocast(self._half):
            made = network.decoder(quantized.latent)
        return made.float().squeeze(1), quantized

    def _judge(self, made: Tensor, real: Tensor, rate: float) -> dict[str, Tensor]:
        """Trains the discriminators on a batch, then asks them about it."""
        state, judges = self.state, self.state.discriminators
        with self._autocast(self._gpu):
            verdicts = judges(made.detach()), judges(real)
        loss = discriminator_loss(*verdicts)
        descend(judges, state.judging, loss, rate, LARGEST_JUDGING_GRADIENT)
        judges.requires_grad_(False)
        with self._autocast(self._gpu):
            ours = judges(made)
            with torch.no_grad():
                theirs = judges(real)
        judges.requires_grad_(True)
        return {**adversarial_loss(ours, theirs), "judges": loss.detach()}

    def _autocast(self, enabled: bool) -> AbstractContextManager[None]:
        return torch.autocast(self.state.device.type, torch.bfloat16, enabled=enabled)


def descend(
    network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, largest: float
) -> None:
    """One step of an optimiser; none where the gradient is not a number."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(network.parameters(), largest)
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("pace", 1.0)
    if torch.isfinite(norm):
        optimiser.step()


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss for name, loss in losses.items() if name != "judges"]).sum()


@torch.no_grad()
def held_out_loss(state: CodecState, crops: Crops, batches: int = 4) -> float:
    """Mel distance of the average, on recordings that it was not trained on."""
    network = state.average.network
    total = 0.0
    for _ in range(batches):
        real = crops.batch()
        total += float(mel_loss(network(real.unsqueeze(1))[0].squeeze(1), real))
    return total / batches


def train(trainer: CodecTrainer, shards: Shards, folder: Path) -> None:
    """Steps until the call's time is up; now and then saves, and looks for more recordings."""
    saved = started = time.monotonic()
    while not trainer.budget.spent:
        losses = trainer.step()
        progress = trainer.state.progress
        if progress.step % LOG_EVERY == 0:
            told = " ".join(f"{name} {float(loss):.3f}" for name, loss in losses.items())
            pace = trainer.budget.since_start / (time.monotonic() - started)
            logger.info(
                "%d (%.0f %%, %.1f/s): %s; used %s",
                progress.step, 100 * trainer.budget.fraction, pace, told, trainer.watch.used(),
            )  # fmt: skip
        if time.monotonic() - saved > SAVE_EVERY_S:
            trainer.state.save(folder)
            trainer.crops.add([one for one in shards.new() if one.use == TRAIN])
            saved = time.monotonic()
    trainer.state.save(folder)


def begin_with(shards: Shards, seconds: float, patience_s: float) -> list[Recording]:
    """The recordings that are there once there are enough, or no more patience."""
    recordings, end = shards.new(), time.monotonic() + patience_s
    while sum(one.seconds for one in recordings) < seconds and time.monotonic() < end:
        time.sleep(1)
        recordings += shards.new()
    return recordings


def run(sizes: Sizes, device: torch.device, options: argparse.Namespace) -> CodecState:
    """The whole stage."""
    shards = Shards(options.data)
    recordings = begin_with(shards, FIRST_S, 0.0 if options.smoke else PATIENCE_S)
    recordings += read_extra(options.tools)
    state = CodecState.open(options.out, sizes, device, options.start, options.fresh_decoder)
    steps = SMOKE_STEPS if options.smoke else None
    budget = Budget(state.progress, options.minutes, options.schedule_minutes, steps)
    training = [recording for recording in recordings if recording.use == TRAIN]
    others = [recording for recording in recordings if recording.use != TRAIN] or training
    hours = sum(recording.seconds for recording in training) / 3600
    logger.info("%d recordings, %.2f h", len(training), hours)
    crops = Crops(training, sizes.crop, sizes.crops, device, seed=state.progress.step)
    trainer = CodecTrainer(
        state, crops, budget, options.adversaries_from, options.precision, options.only_decoder
    )
    train(trainer, shards, options.out)
    check = Crops(others, sizes.crop, sizes.crops, device, seed=0)
    logger.info("step %d: held-out mel %.3f", state.progress.step, held_out_loss(state, check))
    return state


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description="trains the small DAC")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tools", type=Path, default=TOOLS, help="for the further voices")
    parser.add_argument("--out", type=Path, default=CODEC)
    parser.add_argument("--start", type=Path, help="weights to begin with, config.json beside")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call")
    parser.add_argument("--schedule-minutes", type=float, default=27.0, help="of all calls")
    parser.add_argument("--adversaries-from", type=float, default=0.3, help="part of the run")
    parser.add_argument("--precision", choices=("tf32", "bf16"), default="tf32")
    parser.add_argument("--fresh-decoder", action="store_true", help="of --start, only the codes")
    parser.add_argument("--only-decoder", action="store_true", help="all codes stay as they are")
    parser.add_argument("--compile", action="store_true", help="fuse the Snake activation")
    parser.add_argument("--smoke", action="store_true", help="a few steps at the least size")
    return parser.parse_args(given)


def prepare_device(fuse_snake: bool) -> torch.device:
    """The GPU set up for convolutions of fixed shapes, or the CPU."""
    torch.manual_seed(0)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if fuse_snake:
        torch._dynamo.config.recompile_limit = 64  # one for each shape; there are some thirty
        Snake.forward = torch.compile(Snake.forward, dynamic=False)  # type: ignore[method-assign]
    return torch.device("cuda")


def main() -> None:
    """Trains the codec."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = prepare_device(options.compile)
    if options.smoke:
        torch.set_num_threads(1)  # a team takes longer to wake than such a run to finish
    run(SMOKE if options.smoke else FULL, device, options)


if __name__ == "__main__":
    main()

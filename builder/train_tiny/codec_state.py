"""What the codec's training is made of, and how it is kept between calls.

Two copies are kept. `state.pt` is everything, for a call on the same machine. `resume/` and
`final/` are small enough to be sent elsewhere: weights in float16, no optimisers, whose moments
begin anew with another warm-up. `final/` is the average, as the worker loads it.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from builder.train_tiny.averaging import Average
from builder.train_tiny.budget import Progress
from builder.train_tiny.codebooks import unit_normal
from builder.train_tiny.config import Sizes
from builder.train_tiny.discriminators import Discriminators
from worker.codec.checkpoint import load_codec, save_codec
from worker.codec.network import CodecNetwork, Decoder

logger = logging.getLogger(__name__)

AVERAGE_DECAY, AVERAGE_EVERY = 0.9995, 10
BETAS = (0.8, 0.99)
DECODER_PACE = 2.5  # its rate by that of the rest: codebooks break at what a decoder learns best at
FINAL, RESUME, STATE = "final", "resume", "state.pt"
DISCRIMINATORS, PROGRESS = "discriminators.safetensors", "progress.json"


class CodecState:
    """Network, average, discriminators, their optimisers, and how far they are."""

    def __init__(self, sizes: Sizes, device: torch.device, start: CodecNetwork | None) -> None:
        # Torch's own initialisation: with transformers' (σ = 0.02 everywhere) the latents blow up.
        network = CodecNetwork(sizes.codec) if start is None else start
        if start is None:
            unit_normal(network)
        self.device, self.progress = device, Progress()
        self.average = Average(copy.deepcopy(network).to(device), AVERAGE_DECAY, AVERAGE_EVERY)
        self.network = with_weight_norm(network.to(device))
        self.discriminators = Discriminators(sizes).to(device)
        coding = [*self.network.encoder.parameters(), *self.network.quantizer.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": coding},
            {"params": list(self.network.decoder.parameters()), "pace": DECODER_PACE},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=BETAS)
        self.judging = torch.optim.AdamW(self.discriminators.parameters(), lr=0.0, betas=BETAS)

    @classmethod
    def open(
        cls,
        folder: Path,
        sizes: Sizes,
        device: torch.device,
        start: Path | None,
        fresh_decoder: bool = False,
    ) -> CodecState:
        """Goes on where the folder is; else from a codec's weights; else from nothing.

        Args:
            folder: that `save` writes.
            sizes: of what is begun from nothing.
            device: where it is trained.
            start: weights to begin with, if the folder is empty.
            fresh_decoder: takes the encoder and the codebooks of `start` alone.
        """
        resume, whole = folder / RESUME, folder / STATE
        if whole.is_file():
            state = cls(sizes, device, None)
            state._restore(torch.load(whole, map_location=device, weights_only=True))
        elif (resume / PROGRESS).is_file():
            state = cls(sizes, device, _network(resume))
            saved = load_file(resume / DISCRIMINATORS)
            state.discriminators.load_state_dict({k: v.float() for k, v in saved.items()})
            state.average.copy(_network(folder / FINAL).to(device))
            state.progress = Progress(**json.loads((resume / PROGRESS).read_text()))
        else:
            network = _network(start) if start else None
            if network is not None and fresh_decoder:
                network.decoder = Decoder(network.config)
            state = cls(sizes, device, network)
        logger.info("codec at step %d, %.1f minutes", state.progress.step, state.progress.minutes)
        return state

    def save(self, folder: Path) -> None:
        """Writes both copies."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._everything(), folder / STATE)
        raw = Average(copy.deepcopy(self.average.network), 0.0)
        raw.copy(self.network)
        for network, name in ((raw.network, RESUME), (self.average.network, FINAL)):
            assert isinstance(network, CodecNetwork)
            save_codec(copy.deepcopy(network).half(), folder / name)
        save_file(_halved(self.discriminators), folder / RESUME / DISCRIMINATORS)
        (folder / RESUME / PROGRESS).write_text(json.dumps(self.progress.to_json()) + "\n")

    def _everything(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "progress": self.progress.to_json()}

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.progress = Progress(**saved["progress"])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "network": self.network,
            "average": self.average.network,
            "discriminators": self.discriminators,
            "optimiser": self.optimiser,
            "judging": self.judging,
        }


def with_weight_norm(network: CodecNetwork) -> CodecNetwork:
    """The same network, each convolution's weight as a length and a direction."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            weight_norm(module)
    return network


def _network(path: Path) -> CodecNetwork:
    return load_codec(path, torch.device("cpu")).network.train()


def _halved(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.half().cpu() for name, value in network.state_dict().items()}

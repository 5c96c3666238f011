"""A model folder of full size with random weights: what a step costs does not depend on the values.

    python -m bench.weights --keep /data/bench

The folder is what the worker loads: 3.2 GB of bfloat16 and a codec of 0.3 GB. It is made once, in
about a minute and 7 GB of memory, and found again by every benchmark with `--random-weights`.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.published import DAC, DIA
from builder.model_folder import CONFIG, write_model_folder
from worker.codec.network import CodecNetwork
from worker.dia.checkpoint import empty_dia

SEED = 1610
LOUDNESS = 0.004  # of the codec's last convolution: noise at a bearable level
KEPT_IN = Path(tempfile.gettempdir()) / "dia-bench"

SMALL = replace(
    DIA,
    encoder=replace(DIA.encoder, layers=2, hidden=64, intermediate=256, heads=4, head_dim=16),
    decoder=replace(
        DIA.decoder,
        layers=3,
        hidden=64,
        intermediate=256,
        query_heads=4,
        kv_heads=2,
        head_dim=16,
        cross_heads=4,
        cross_head_dim=16,
    ),
)
SIZES = {  # a model with its codec
    "full": (DIA, DAC),
    "small": (
        SMALL,
        replace(DAC, encoder_channels=8, decoder_channels=128, latent_dim=128),
    ),
}


def random_model(directory: Path, size: str = "full") -> Path:
    """The folder of a random model; made where it is not there yet.

    Args:
        directory: keeps the folders of all sizes.
        size: one of `SIZES`; `small` is for trials on a CPU.
    """
    folder = directory / f"dia-random-{size}"
    if (folder / CONFIG).is_file():  # written last, and moved here as a whole
        return folder
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=directory, prefix=f"{folder.name}-"))
    try:
        _write(unfinished, size)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not (folder / CONFIG).is_file():  # unless another process was quicker
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@torch.no_grad()
def _write(folder: Path, size: str) -> None:
    config, codec_config = SIZES[size]
    generator = torch.Generator().manual_seed(SEED)
    model = empty_dia(config, torch.device("cpu"), torch.bfloat16)
    _fill(model, generator)
    # A model of noise ends at random, or at once: this one does not end.
    model.decoder.logits.weight[config.eos_id].zero_()
    codec = CodecNetwork(codec_config)
    _fill(codec, generator)
    codec.decoder.conv2.weight.mul_(LOUDNESS)
    write_model_folder(folder, model, codec, trained=False)


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices so that variance is kept, tables of unit variance, norms and Snakes of one."""
    for name, parameter in module.named_parameters():
        if "norm" in name or "alpha" in name:
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            is_table = "embedding" in name or "codebook" in name
            spread = 1.0 if is_table else 1 / math.sqrt(math.prod(parameter.shape[1:]))
            parameter.normal_(std=spread, generator=generator)


def main() -> None:
    """Makes the folder, or finds it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--keep", type=Path, default=KEPT_IN, help="where the folder is kept")
    options = parser.parse_args()
    print(random_model(options.keep, options.size))


if __name__ == "__main__":
    main()

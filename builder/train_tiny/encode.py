"""Stage 4: turns the recordings into codes, some of them at other speeds, as further speakers.

    python -m builder.train_tiny.encode --codec build/train_tiny/codec/final

Recordings are padded to a few lengths and encoded in batches; zeros at the end do not change the
frames kept but for the last few, which are silence anyway.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from builder.train_tiny.codes import Corpus, Utterance, write_codes
from builder.train_tiny.config import CODEC, CODES, DATA, SAMPLE_RATE, TOOLS, TRAIN
from builder.train_tiny.recordings import Recording, read_extra, read_recordings
from builder.train_tiny.resample import resample
from builder.train_tiny.sound import speeds
from worker.codec.checkpoint import load_codec
from worker.codec.codec import Codec

logger = logging.getLogger(__name__)

STEP_S = 1.0  # lengths are padded to multiples of it
BATCH_S = 240.0  # seconds encoded at once on a GPU
SILENCE_S = 1.0
RESPEEDED = 0.3  # part of the training sentences that are encoded at another speed too
LONGEST_S = 20.0  # nothing longer is kept


def paced(recordings: list[Recording], chance: random.Random) -> list[tuple[Recording, int, str]]:
    """(recording, rate it is said to have, speaker's name), shuffled.

    Only the slowest and the fastest pace are used: in between, the voice would be the same.
    """
    every = [(one, one.rate, one.speaker) for one in recordings]
    for one in recordings:
        if one.use == TRAIN and chance.random() < RESPEEDED:
            pace, sign = chance.choice(list(zip(_extremes(one.rate), "-+", strict=True)))
            every.append((one, pace, one.speaker + sign))
    chance.shuffle(every)
    return every


def _extremes(rate: int) -> tuple[int, int]:
    choices = speeds(rate)
    return choices[0], choices[-1]


def batches(
    items: list[tuple[Recording, int, str]], batch_s: float
) -> Iterator[tuple[int, int, list[tuple[Recording, str]]]]:
    """(rate, seconds to pad to, recordings), such that each batch has one rate and length."""
    groups: dict[tuple[int, int], list[tuple[Recording, str]]] = {}
    for one, rate, speaker in items:
        steps = ceil(len(one.samples) / rate / STEP_S)
        if steps * STEP_S > LONGEST_S:
            continue
        group = groups.setdefault((rate, steps), [])
        group.append((one, speaker))
        if (len(group) + 1) * steps * STEP_S > batch_s:
            yield rate, steps, groups.pop((rate, steps))
    for (rate, steps), group in groups.items():
        yield rate, steps, group


@torch.inference_mode()
def encode_batch(
    codec: Codec, rate: int, seconds: float, recordings: list[Recording]
) -> list[NDArray[np.int16]]:
    """[T, C] codes of each recording, which are said to have been made at `rate`."""
    padded = np.zeros((len(recordings), ceil(seconds * rate)), np.int16)
    for row, one in zip(padded, recordings, strict=True):
        row[: len(one.samples)] = one.samples
    device = codec.network.encoder.conv1.weight.device
    waveforms = resample(torch.from_numpy(padded).to(device).float() / 32_767, rate)
    hop = codec.hop_length
    waveforms = torch.nn.functional.pad(waveforms, (0, -waveforms.shape[1] % hop))
    latent = codec.network.encoder(waveforms.unsqueeze(1))
    codes = codec.network.quantizer(latent).codes.transpose(1, 2)  # [B, T, C]
    lengths = [ceil(len(one.samples) / rate * SAMPLE_RATE / hop) for one in recordings]
    made = codes.to(torch.int16).cpu().numpy()
    return [row[:length].copy() for row, length in zip(made, lengths, strict=True)]


def encode_all(
    codec: Codec, recordings: list[Recording], batch_s: float, max_hours: float
) -> Corpus:
    """All recordings and their paced copies, up to `max_hours` of sound."""
    items = paced(recordings, random.Random(0))
    # What is not for training comes first, however much there is.
    items.sort(key=lambda item: item[0].use == TRAIN)
    utterances: list[Utterance] = []
    frames, limit, started = 0, max_hours * 3600 * codec.frame_rate, time.monotonic()
    for rate, steps, group in batches(items, batch_s):
        spoken = [one for one, _ in group]
        for (one, speaker), codes in zip(
            group, encode_batch(codec, rate, steps * STEP_S, spoken), strict=True
        ):
            utterances.append(Utterance(one.text, speaker, one.use, codes))
            frames += len(codes)
        if frames > limit:
            break
    spent, seconds = time.monotonic() - started, frames / codec.frame_rate
    logger.info(
        "encoded %d sentences, %.2f h, in %.0f s: %.0f × realtime",
        len(utterances), seconds / 3600, spent, seconds / spent,
    )  # fmt: skip
    nothing = codec.encode(torch.zeros(round(SILENCE_S * SAMPLE_RATE)))
    middle = nothing[len(nothing) // 4 : -len(nothing) // 4]
    return Corpus(utterances, middle.to(torch.int16).numpy())


def main() -> None:
    """Encodes the data."""
    parser = argparse.ArgumentParser(description="turns the recordings into codes")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--tools", type=Path, default=TOOLS, help="for the further voices")
    parser.add_argument("--codec", type=Path, default=CODEC / "final")
    parser.add_argument("--out", type=Path, default=CODES)
    parser.add_argument("--max-hours", type=float, default=10.0, help="3.5 MB an hour")
    parser.add_argument("--smoke", action="store_true", help="small batches")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.smoke:
        torch.set_num_threads(1)  # a team takes longer to wake than such a run to finish
    # Ten bits of mantissa would flip codes that are nearly tied.
    torch.backends.cudnn.allow_tf32 = False
    codec = load_codec(options.codec, device)
    recordings = [*read_recordings(options.data), *read_extra(options.tools)]
    corpus = encode_all(codec, recordings, 4.0 if options.smoke else BATCH_S, options.max_hours)
    write_codes(options.out, corpus)


if __name__ == "__main__":
    main()

"""Samples as the decoder sees them: delayed codes to read, and the codes to predict.

Follows `worker.dia.delay` and the ending in `worker.engine.state`. With F frames, element 0 of
the sequence is BOS, elements 1 … F are the frames, and element F + 1 is the end. Position t of
channel c holds element t − delay[c]: BOS before the first, EOS at the end, PAD after it.

Predicted are the elements behind the prompt, and in channel 0 the end. The engine forces all
else: the prompt, and EOS and PAD in channels 1 to 8 once channel 0 has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from builder.train_tiny.guide import Guide, guide_for
from builder.train_tiny.samples import Composer, Sample
from worker.dia.config import DiaConfig

IGNORED = -100  # a target that is not predicted
STEP = 64  # lengths of frames are padded to multiples of it, those of texts to 16
TEXT_STEP = 16


@dataclass(frozen=True)
class Batch:
    """R samples of one length, padded at their ends."""

    text: Tensor  # [R, S] ids
    text_lengths: Tensor  # [R]
    tokens: Tensor  # [R, N, C] read at positions 0 … N − 1
    targets: Tensor  # [R, N, C] of the positions after each; IGNORED where forced
    guide: Guide  # where the positions should look in the text

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = (self.text, self.text_lengths, self.tokens, self.targets)
        text, lengths, tokens, targets = (each.to(device, non_blocking=True) for each in tensors)
        return Batch(text, lengths, tokens, targets, self.guide.to(device))


def delayed(codes: Tensor, config: DiaConfig) -> Tensor:
    """[F, C] frames → [F + 2 + max(delay), C], all that stands at the positions."""
    elements = _elements(len(codes), config)
    frames = torch.cat([codes[:1], codes]).long()  # element e is row e; row 0 is not used
    tokens = frames.gather(0, elements.clamp(1, len(codes)))
    tokens = tokens.masked_fill(elements <= 0, config.bos_id)
    tokens = tokens.masked_fill(elements == len(codes) + 1, config.eos_id)
    return tokens.masked_fill(elements > len(codes) + 1, config.pad_id)


def predicted(frames: int, prompt_frames: int, config: DiaConfig) -> Tensor:
    """Which of the delayed codes the model chooses; bool, of the same shape."""
    elements = _elements(frames, config)
    chosen = (elements > prompt_frames) & (elements <= frames)
    chosen[:, 0] |= elements[:, 0] == frames + 1
    return chosen


def length_of(sample: Sample, config: DiaConfig) -> int:
    """Positions that a sample is read at."""
    return sample.frames + 1 + config.max_delay


def collate(samples: Sequence[Sample], config: DiaConfig) -> Batch:
    """Lays samples out side by side."""
    length = _up(max(length_of(sample, config) for sample in samples), STEP)
    longest = _up(max(len(sample.text_ids) for sample in samples), TEXT_STEP)
    rows = len(samples)
    text = torch.zeros(rows, longest, dtype=torch.long)
    tokens = torch.full((rows, length, config.decoder.channels), config.pad_id)
    targets = torch.full_like(tokens, IGNORED)
    for row, sample in enumerate(samples):
        text[row, : len(sample.text_ids)] = torch.tensor(sample.text_ids)
        whole = delayed(torch.from_numpy(sample.codes), config)
        chosen = predicted(sample.frames, sample.prompt_frames, config)
        tokens[row, : len(whole) - 1] = whole[:-1]
        targets[row, : len(whole) - 1] = whole.masked_fill(~chosen, IGNORED)[1:]
    lengths = torch.tensor([len(sample.text_ids) for sample in samples])
    return Batch(text, lengths, tokens, targets, guide_for([one.spans for one in samples], length))


def batches(composer: Composer, config: DiaConfig, frames: int, pool: int) -> Iterator[Batch]:
    """Endless batches of about `frames` positions each, padding included.

    `pool` samples are sorted by length before they are cut into batches, so that little is
    padding; the batches of a pool come in random order.
    """
    while True:
        samples = [composer.compose() for _ in range(pool)]
        samples.sort(key=lambda sample: sample.frames)
        cut = list(_cut(samples, config, frames))
        for index in torch.randperm(len(cut)).tolist():
            yield collate(cut[index], config)


def _cut(samples: list[Sample], config: DiaConfig, frames: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:  # the shortest first, so that each is the longest of its batch
        padded = _up(length_of(sample, config), STEP)
        if batch and (len(batch) + 1) * padded > frames:
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def _elements(frames: int, config: DiaConfig) -> Tensor:
    positions = torch.arange(frames + 2 + config.max_delay).unsqueeze(1)
    return positions - torch.tensor(config.delays)


def _up(number: int, step: int) -> int:
    return -(-number // step) * step

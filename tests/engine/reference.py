"""The rules of sampling and of a whole generation, written as loops over single numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from tests.dia.reference import decoder_logits
from worker.dia.config import DiaConfig, Generation
from worker.engine.sequence import SamplingParams, Sequence

ROUNDS, WORD = 10, 0xFFFFFFFF


def philox_block(counter: Many[int], key: Many[int]) -> list[int]:
    """The four words of Philox 4x32-10, on Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & WORD,
            (first >> 32) ^ c[3] ^ k[1],
            first & WORD,
        ]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def chance(seed: int, step: int, channel: int, channels: int) -> float:
    """The uniform number of one draw."""
    word = philox_block((step * channels + channel, 0, 0, 0), (seed & WORD, seed >> 32 & WORD))[0]
    return ((word >> 9) + 0.5) / 2**23


def shares(
    config: DiaConfig,
    channel: int,
    unconditional: list[float],
    conditional: list[float],
    params: SamplingParams,
) -> dict[int, float]:
    """Ids that one channel may draw with their probabilities, likeliest first."""
    eos, scale = config.eos_id, params.cfg_scale
    valid = range(eos + 1) if channel == 0 else range(eos)
    guided = [c + scale * (c - u) for c, u in zip(conditional, unconditional, strict=True)]
    order = sorted(range(len(guided)), key=lambda i: -guided[i])
    if config.generation is Generation.JUNE:
        candidates = [i for i in order[: params.top_k] if i in valid]
        candidates = candidates or [next(i for i in order if i in valid)]
        scores = {i: conditional[i] for i in candidates}
    else:
        scores = {i: guided[i] for i in valid}
        if channel == 0:
            scores[eos] *= 0.8
    best = max(scores, key=lambda i: scores[i])
    if params.temperature == 0:
        return {best: 1.0}
    if best != eos:
        scores.pop(eos, None)
    elif config.generation is Generation.JUNE:
        scores = {eos: scores[eos]}
    ranked = sorted(scores, key=lambda i: -scores[i])[: params.top_k]
    masses = [math.exp((scores[i] - scores[ranked[0]]) / params.temperature) for i in ranked]
    whole, nucleus = sum(masses), {}
    likelier = 0.0
    for i, mass in zip(ranked, masses, strict=True):
        if likelier > params.top_p:
            break
        nucleus[i] = mass / whole
        likelier += mass / whole
    kept = sum(nucleus.values())
    return {i: share / kept for i, share in nucleus.items()}


def pick(options: dict[int, float], chance: float) -> int:
    """The id in whose share of the mass the chance falls."""
    below = 0.0
    for i, share in options.items():
        below += share
        if chance < below:
            return i
    return list(options)[-1]


def generate_slowly(
    config: DiaConfig, tensors: dict[str, Tensor], sequence: Sequence
) -> tuple[list[list[int]], bool]:
    """The new frames, and whether the model ended them; every step decodes everything again."""
    channels, delays, prompt = config.decoder.channels, config.delays, sequence.prompt.tolist()
    elements = [[config.bos_id] * channels, *prompt]  # by element, then channel
    known = len(prompt)  # elements up to this one are given
    grid = [  # by position, then channel
        [elements[max(0, t - delays[c])][c] for c in range(channels)] for t in range(known + 1)
    ]
    limit, end = known + 1 + sequence.max_new_frames, None
    while end is None or len(grid) < end + max(delays):
        t = len(grid)
        tokens = torch.tensor(grid[:t])
        blind = decoder_logits(tensors, config, [0] * len(sequence.text_ids), tokens)[-1]
        seeing = decoder_logits(tensors, config, sequence.text_ids, tokens)[-1]
        row = []
        for c in range(channels):
            element = t - delays[c]
            if element <= known:
                row.append(elements[max(0, element)][c])
                continue
            options = shares(config, c, blind[c].tolist(), seeing[c].tolist(), sequence.params)
            u = chance(sequence.params.seed, t - known - 1, c, channels)
            row.append(pick(options, u))
        if end is None and (row[0] == config.eos_id or t == limit):
            end = t
        if end is not None:
            for c in range(channels):
                if t - end == delays[c]:
                    row[c] = config.eos_id
                elif t - end > delays[c]:
                    row[c] = config.pad_id
        grid.append(row)
    frames = [
        [code if code <= 1023 else 0 for code in (grid[e + delays[c]][c] for c in range(channels))]
        for e in range(known + 1, end)
    ]
    return frames, end < limit

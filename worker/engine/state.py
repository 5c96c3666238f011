"""Where each slot is in its sequence, in tensors on the device.

Positions count from 0 (all BOS). A slot's `history` holds its delayed codes by position; a step
reads the row at `position` and writes the next one. Every rule of the ending is a comparison of
tensors, so a step never asks the device a question; `progress.py` does, between steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.dia.config import DiaConfig
from worker.dia.delay import UNKNOWN, delay_prompt
from worker.engine.sampling import NO_CODE, SamplingBatch
from worker.engine.sequence import Sequence
from worker.tensors import upload

NEVER = 1 << 30  # position of an end that has not been drawn


class SlotState:
    """Progress and settings of every slot; row s belongs to slot s."""

    def __init__(self, config: DiaConfig, slots: int, device: torch.device) -> None:
        def integers(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.long, device=device)

        self._config = config
        self._delays = torch.tensor(config.delays, device=device)  # [C]
        self._rows = torch.arange(slots, device=device)
        length = config.decoder.max_positions + config.max_delay + 1
        self.history = integers(slots, length, config.decoder.channels)  # [S, T, C]
        self.position = integers(slots)  # of the codes that the next step reads
        self.start = integers(slots)  # first position that was decoded
        self.limit = integers(slots)  # position at which the end is forced
        self.end = integers(slots, fill=-config.max_delay)  # position of EOS in channel 0
        self.broken = integers(slots)  # 1 where a step gave no numbers
        self.seed = integers(slots)
        self.top_k = integers(slots, fill=1)
        self.cfg_scale = torch.zeros(slots, device=device)
        self.temperature = torch.zeros(slots, device=device)
        self.top_p = torch.ones(slots, device=device)

    def load(self, slot: int, sequence: Sequence) -> None:
        """Lays a sequence's prompt and settings into its slot, ready for its first step."""
        params = sequence.params
        prompt = delay_prompt(sequence.prompt.long(), self._config.delays, self._config.bos_id)
        self.history[slot] = UNKNOWN
        self.history[slot, : prompt.shape[0]] = upload(prompt, self.history.device)
        self.position[slot] = self.start[slot] = sequence.prompt_frames
        self.limit[slot] = sequence.frame_limit
        self.end[slot] = NEVER
        self.broken[slot] = 0
        self.seed[slot] = params.seed
        self.top_k[slot] = params.top_k
        self.cfg_scale[slot] = params.cfg_scale
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p

    def clear(self, slot: int) -> None:
        """Freezes a slot: steps no longer change it."""
        self.end[slot] = -self._config.max_delay
        self.position[slot] = 0

    def tokens(self, width: int) -> Tensor:
        """[N, C] codes that the first N slots read next."""
        return self.history[self._rows[:width], self.position[:width]].clamp_min(0)

    def sampling(self, width: int, widest: int) -> SamplingBatch:
        """Settings of the first N slots for the step that is being decoded."""
        return SamplingBatch(
            self.cfg_scale[:width],
            self.temperature[:width],
            self.top_p[:width],
            self.top_k[:width],
            self.seed[:width],
            (self.position[:width] - self.start[:width]).clamp_min(0),
            widest,
        )

    def commit(self, drawn: Tensor) -> None:
        """Writes the next position's codes [N, C] and moves on.

        In order: what the prompt fixes stays; at the limit channel 0 ends, and where the model
        gave no numbers; after an end each channel says EOS when its delay has passed, and PAD from
        then on.
        """
        width, config = drawn.shape[0], self._config
        rows, end = self._rows[:width], self.end[:width]
        at = self.position[:width] + 1
        fixed = self.history[rows, at]
        codes = torch.where(fixed == UNKNOWN, drawn, fixed)
        failed = (drawn == NO_CODE).any(1)
        ends = failed | (at == self.limit[:width])
        codes[:, 0] = torch.where(ends, config.eos_id, codes[:, 0])
        ends_now = (codes[:, 0] == config.eos_id) & (end == NEVER)
        end = torch.where(ends_now, at, end)
        since = (at - end).unsqueeze(1) - self._delays  # [N, C] positions after each channel's end
        codes = torch.where(since == 0, config.eos_id, codes)
        codes = torch.where(since > 0, config.pad_id, codes)
        running = at <= end + config.max_delay - 1
        self.history[rows, at] = torch.where(running.unsqueeze(1), codes, fixed)
        self.end[:width] = end
        self.broken[:width] |= failed & running
        self.position[:width] += running

    def recent(self, width: int, window: int) -> Tensor:
        """What the host wants to know of the first N slots.

        Returns:
            [N, 3 + window·C] int64: position, end, whether broken, and the codes of the last
            `window` positions up to that one, the oldest first.
        """
        position = self.position[:width].unsqueeze(1)
        back = torch.arange(1 - window, 1, device=position.device)
        codes = self.history[self._rows[:width, None], (position + back).clamp_min(0)]
        facts = (position, self.end[:width, None], self.broken[:width, None])
        return torch.cat([*facts, codes.flatten(1)], dim=1)

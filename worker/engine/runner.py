"""Runs the model over the slots: prefill of one, decode steps of all.

Knows tensors and slots. Does not know which sequence is whose turn, nor when one is cancelled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.dia.delay import undelay
from worker.dia.model import DiaModel
from worker.engine.cache import KVCache, PromptPass, StepPass
from worker.engine.sampling import Sampler
from worker.engine.sequence import Sequence
from worker.engine.state import NEVER, SlotState


class Runner:
    """A model, and the memory for `slots` sequences."""

    def __init__(self, model: DiaModel, slots: int) -> None:
        weight = model.decoder.logits.weight
        self.model, self.config, self.device = model, model.config, weight.device
        self.cache = KVCache(model.config, slots, self.device, weight.dtype)
        self.state = SlotState(model.config, slots, self.device)
        self.sampler = Sampler(model.config, self.device)
        self.logits: Tensor | None = None  # [2, N, C, V] of the last step: without, with the text

    @torch.inference_mode()
    def start(self, slot: int, sequence: Sequence) -> None:
        """Encodes a sequence's text and decodes its prompt into the slot's cache."""
        self.state.load(slot, sequence)
        self.cache.clear(slot)
        text = torch.tensor(sequence.text_ids, device=self.device)
        self.cache.set_text(slot, self.model.text_keys_values(self.model.encode(text)))
        if sequence.prompt_frames:
            positions = torch.arange(sequence.prompt_frames, device=self.device)
            tokens = self.state.history[slot, : sequence.prompt_frames]
            both = tokens.expand(2, -1, -1)
            self.model.decode(both, positions, PromptPass(self.cache, slot), unconditional_rows=1)

    @torch.inference_mode()
    def step(self, width: int, context: int, widest: int) -> None:
        """Decodes one position of the first `width` slots. Does not wait for the device.

        Args:
            width: slots to compute; finished ones among them stay as they are.
            context: positions that the longest of them has reached.
            widest: the largest top_k among them.
        """
        state = self.state
        tokens, positions = state.tokens(width), state.position[:width]
        attend = StepPass(self.cache, positions, context)
        hidden = self.model.decode(
            tokens.expand(2, -1, -1), positions, attend, unconditional_rows=1
        )
        self.logits = self.model.logits(hidden)
        drawn = self.sampler.draw(
            self.logits[0], self.logits[1], state.sampling(width, widest), state.chances(width)
        )
        state.commit(drawn)

    @torch.inference_mode()
    def progress(self, width: int) -> list[tuple[int, bool]]:
        """(new frames, finished) of the first `width` slots. Waits for the device."""
        delay, starts = self.config.max_delay, self.state.start[:width].tolist()
        progress = []
        for (position, end), start in zip(self.state.progress(width), starts, strict=True):
            finished = position >= end + delay - 1
            frames = (position if end == NEVER else end - 1) - start
            progress.append((max(0, frames), finished))
        return progress

    @torch.inference_mode()
    def collect(self, slot: int) -> Tensor:
        """The new frames [T, C] of a finished slot, on the CPU; the slot is then free."""
        history = self.state.history[slot].cpu()
        start, end = int(self.state.start[slot]), int(self.state.end[slot])
        self.state.clear(slot)
        return undelay(history, self.config.delays, start + 1, end, codes=self.config.eos_id)

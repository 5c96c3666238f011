"""Admission: texts encoded and prompts decoded, several sequences in one pass.

Guidance needs each prompt twice, with its text and without. Without, its keys and values depend on
the prompt alone; they are kept, so a voice that many chunks share is decoded once.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.dia.model import ATTENTION_SCALE, DiaModel
from worker.engine.cache import KVCache, PromptKV
from worker.engine.footprint import AT_ONCE
from worker.engine.sequence import Sequence
from worker.tensors import upload


class PromptCache:
    """Keys and values of prompts without text, by their codes, in memory that is allocated once.

    Keeps as many prompts as it has places, and forgets the least recently used.
    """

    def __init__(self, cache: KVCache, places: int, frames: int) -> None:
        assert places == 0 or places >= AT_ONCE  # or one pass would overwrite its own prompts
        self.frames = frames  # of the longest prompt that is kept
        self._pool = [cache.new_prompt(frames) for _ in range(places)]
        self._place: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self._free = list(range(places))
        self._length: dict[bytes, int] = {}

    def get(self, key: bytes) -> PromptKV | None:
        """What is kept for a prompt, which is then the most recently used."""
        if key not in self._place:
            return None
        self._place.move_to_end(key)
        return self._pool[self._place[key]].first(self._length[key])

    def room(self, key: bytes, frames: int) -> PromptKV | None:
        """A place for a prompt, which the caller fills; none where it is too long to be kept."""
        if frames > self.frames or not self._pool:
            return None
        if not self._free:
            oldest, place = self._place.popitem(last=False)
            del self._length[oldest]
            self._free.append(place)
        self._place[key], self._length[key] = self._free.pop(), frames
        return self.get(key)

    def clear(self) -> None:
        """Forgets everything, after a failure in which a place may have stayed unfilled."""
        self._free.extend(self._place.values())
        self._place.clear()
        self._length.clear()


class PromptPass:
    """How the tokens of several prompts attend, each causally to itself from position 0 on.

    The rows of the pass: those without text first, then those with. All are as long as the longest
    prompt; what follows the end of a shorter one is seen by nobody.

    Args:
        cache: takes the keys and values of the rows with text, and has their texts'.
        without: takes those of the rows without text.
        slots: of the rows with text.
        frames: of the rows with text.
        text_lengths: of the rows with text.
    """

    def __init__(
        self,
        cache: KVCache,
        without: list[PromptKV],
        slots: list[int],
        frames: list[int],
        text_lengths: list[int],
    ) -> None:
        self._cache, self._without = cache, without
        self._slots, self._frames = slots, frames
        self._text, device = max(text_lengths), cache.k.device
        self._mask: Tensor | None = None
        if min(text_lengths) < self._text:
            lengths = upload(torch.tensor(text_lengths), device)
            places = torch.arange(self._text, device=device)
            self._mask = (places < lengths.unsqueeze(1))[:, None, None]  # [B, 1, 1, Tx]

    def self_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # [R, heads, P, D]
        for row, kept in enumerate(self._without):
            kept.k[layer] = k[row, :, : kept.frames]
            kept.v[layer] = v[row, :, : kept.frames]
        for row, (slot, frames) in enumerate(
            zip(self._slots, self._frames, strict=True), start=len(self._without)
        ):
            self._cache.k[layer, slot, 1, :, :frames] = k[row, :, :frames]
            self._cache.v[layer, slot, 1, :, :frames] = v[row, :, :frames]
        attended = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=ATTENTION_SCALE, enable_gqa=True
        )
        return attended.transpose(1, 2)

    def cross_attention(self, layer: int, q: Tensor) -> Tensor:
        k, v = (
            torch.stack([kept[layer, slot, :, : self._text] for slot in self._slots])
            for kept in (self._cache.text_k, self._cache.text_v)
        )
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=self._mask, scale=ATTENTION_SCALE
        )
        return attended.transpose(1, 2)


class Prefill:
    """Lays texts and prompts of new sequences into their slots' caches.

    Args:
        model: encodes and decodes.
        cache: of the slots.
        places: prompts whose keys and values without text are kept; none, or `AT_ONCE` or more.
        frames: of the longest of them.
    """

    def __init__(self, model: DiaModel, cache: KVCache, places: int, frames: int) -> None:
        self._model, self._cache = model, cache
        self._kept = PromptCache(cache, places, frames)

    def __call__(self, admitted: list[tuple[int, Sequence]], history: Tensor) -> None:
        """Prepares slots for the first step of their sequences.

        Args:
            admitted: slots with their sequences.
            history: [S, T, C] delayed codes by slot and position; the prompts are there.
        """
        device = history.device
        texts = [upload(torch.tensor(sequence.text_ids), device) for _, sequence in admitted]
        for (slot, _), encoded in zip(admitted, self._model.encode_all(texts), strict=True):
            self._cache.clear(slot)
            self._cache.set_text(slot, self._model.text_keys_values(encoded))
        prompted = [(slot, each) for slot, each in admitted if each.prompt_frames]
        if not prompted:
            return
        try:
            self._decode_prompts(prompted, history)
        except BaseException:
            self._kept.clear()
            raise

    def _decode_prompts(self, prompted: list[tuple[int, Sequence]], history: Tensor) -> None:
        without: dict[bytes, PromptKV] = {}  # of all prompts
        decoding: dict[int, PromptKV] = {}  # of those not kept, by a slot that has the prompt
        keys = [_key(sequence.prompt) for _, sequence in prompted]
        for key, (slot, sequence) in zip(keys, prompted, strict=True):
            kept = without.get(key) or self._kept.get(key)
            if kept is None:
                frames = sequence.prompt_frames
                kept = self._kept.room(key, frames) or self._cache.new_prompt(frames)
                decoding[slot] = kept
            without[key] = kept
        self._pass(prompted, decoding, history)
        for key, (slot, _) in zip(keys, prompted, strict=True):
            self._cache.set_prompt(slot, without[key])

    def _pass(
        self,
        prompted: list[tuple[int, Sequence]],
        decoding: dict[int, PromptKV],
        history: Tensor,
    ) -> None:
        slots = [slot for slot, _ in prompted]
        frames = [sequence.prompt_frames for _, sequence in prompted]
        texts = [len(sequence.text_ids) for _, sequence in prompted]
        attend = PromptPass(self._cache, list(decoding.values()), slots, frames, texts)
        tokens = history[[*decoding, *slots], : max(frames)].clamp_min(0)  # [R, P, C]
        positions = torch.arange(max(frames), device=history.device)
        self._model.decode(tokens, positions, attend, unconditional_rows=len(decoding))


def _key(prompt: Tensor) -> bytes:
    return blake2b(prompt.numpy().tobytes(), digest_size=16).digest()

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.codec.codec import Codec
from worker.errors import OutOfMemory

LENGTHS = st.lists(st.integers(0, 120), min_size=1, max_size=6)  # frames
LEAST = 76  # four times the tiny codec's context, the least that may be decoded at once


def random_codes(codec: Codec, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.config.codebook_size, (frames, codec.codebooks), generator=generator)


def bounded(codec: Codec, frames_at_once: int | None, padding: int | None = None) -> Codec:
    """The same network; batches as on a GPU where `padding` is given."""
    other = Codec(codec.network, codec.fingerprint, frames_at_once=frames_at_once)
    other.padding_frames = padding
    return other


class Calls:
    """Counts the frames of each call of the decoder, and runs out of memory above a bound."""

    def __init__(self, codec: Codec, most: float = float("inf")) -> None:
        self.frames: list[int] = []
        self._most = most
        self._hook = codec.network.decoder.register_forward_pre_hook(self._note)

    def _note(self, _module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        batch, _, frames = inputs[0].shape
        self.frames.append(batch * frames)
        if batch * frames > self._most:
            raise torch.OutOfMemoryError("injected")

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@given(LENGTHS, st.none() | st.integers(0, 120), st.none() | st.integers(LEAST, 300))
@settings(deadline=None, max_examples=50)
def test_rows_of_any_lengths_sound_together_as_they_do_alone(
    tiny_codec: Codec, lengths: list[int], padding: int | None, limit: int | None
) -> None:
    rows = [random_codes(tiny_codec, frames, seed) for seed, frames in enumerate(lengths)]
    together = bounded(tiny_codec, limit, padding).decode_batch(rows)
    assert len(together) == len(rows)
    for waveform, codes in zip(together, rows, strict=True):
        alone = tiny_codec.decode(codes)
        assert waveform.shape == alone.shape
        assert torch.allclose(waveform, alone, rtol=0, atol=1e-6)


def test_chunks_that_finish_together_are_decoded_in_two_calls(tiny_codec: Codec) -> None:
    rows = [random_codes(tiny_codec, frames) for frames in (100, 90, 80, 70)]
    codec = bounded(tiny_codec, None, padding=64)
    with Calls(codec) as calls:
        codec.decode_batch(rows)
    assert calls.frames == [4 * 100, 3 * 2 * codec.context_frames]


def test_on_a_cpu_rows_are_decoded_one_by_one(tiny_codec: Codec) -> None:
    with Calls(tiny_codec) as calls:
        tiny_codec.decode_batch([random_codes(tiny_codec, 50)] * 3)
    assert calls.frames == [50, 50, 50]


def test_one_wrong_row_is_refused_before_anything_is_decoded(tiny_codec: Codec) -> None:
    good = random_codes(tiny_codec, 50)
    with Calls(tiny_codec) as calls, pytest.raises(ValueError, match="from 0 to 63"):
        tiny_codec.decode_batch([good, good + 64])
    assert calls.frames == []


def test_no_rows_give_no_waveforms(tiny_codec: Codec) -> None:
    assert tiny_codec.decode_batch([]) == []


@pytest.mark.parametrize("frames_at_once", [LEAST, 100, 500])
def test_a_long_run_is_decoded_in_pieces_and_sounds_as_in_one(
    tiny_codec: Codec, frames_at_once: int
) -> None:
    codes = random_codes(tiny_codec, 700)
    codec = bounded(tiny_codec, frames_at_once)
    with Calls(codec) as calls:
        waveform = codec.decode(codes)
    assert len(calls.frames) > 1
    assert max(calls.frames) <= frames_at_once
    assert (waveform - tiny_codec.decode(codes)).abs().max() < 1e-6


def test_a_bound_of_which_most_would_be_context_is_refused(tiny_codec: Codec) -> None:
    assert 4 * tiny_codec.context_frames == LEAST
    with pytest.raises(ValueError, match="at least 76, not 75"):
        bounded(tiny_codec, LEAST - 1)
    assert bounded(tiny_codec, LEAST).frames_at_once == LEAST


def test_without_memory_for_the_whole_it_is_decoded_in_quarters(
    tiny_codec: Codec, caplog: pytest.LogCaptureFixture
) -> None:
    codes = random_codes(tiny_codec, 400)
    whole = tiny_codec.decode(codes)
    with Calls(tiny_codec, most=200) as calls, caplog.at_level(logging.WARNING):
        waveform = tiny_codec.decode(codes)
    assert calls.frames[0] == 400
    assert max(calls.frames[1:]) == 100
    assert (waveform - whole).abs().max() < 1e-6
    assert [record.message for record in caplog.records] == [
        "out of memory while decoding audio; again, 100 frames at once"
    ]


def test_a_batch_without_memory_is_decoded_in_smaller_ones(tiny_codec: Codec) -> None:
    rows = [random_codes(tiny_codec, frames, seed=frames) for frames in (100, 95, 90, 85)]
    alone = [tiny_codec.decode(codes) for codes in rows]
    codec = bounded(tiny_codec, None, padding=64)
    with Calls(codec, most=150):
        together = codec.decode_batch(rows)
    for waveform, expected in zip(together, alone, strict=True):
        assert (waveform - expected).abs().max() < 1e-6


def test_the_memory_of_the_first_attempt_is_free_before_the_second(
    tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[weakref.ref[Tensor]] = []

    def fail(latent: Tensor) -> Tensor:
        assert all(earlier() is None for earlier in attempts)
        attempts.append(weakref.ref(latent))
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(tiny_codec.network.decoder, "forward", fail)
    with pytest.raises(OutOfMemory):
        tiny_codec.decode(random_codes(tiny_codec, 400))
    assert len(attempts) == 2


def test_when_smaller_pieces_do_not_help_the_error_says_what_would(tiny_codec: Codec) -> None:
    with Calls(tiny_codec, most=10), pytest.raises(OutOfMemory, match="not enough memory on cpu"):
        tiny_codec.decode(random_codes(tiny_codec, 400))
    assert len(tiny_codec.decode(random_codes(tiny_codec, 400))) == 400 * tiny_codec.hop_length


def test_an_error_that_is_not_about_memory_is_not_retried(
    tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(tiny_codec.network.decoder, "forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        tiny_codec.decode(random_codes(tiny_codec, 50))

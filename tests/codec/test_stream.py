from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.codec.codec import Codec
from worker.codec.stream import StreamDecoder


def random_codes(codec: Codec, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.config.codebook_size, (frames, codec.codebooks), generator=generator)


def streamed(codec: Codec, codes: Tensor, cuts: list[int]) -> list[Tensor]:
    """The pieces that come out when `codes` go in cut at `cuts`, the rest last."""
    decoder = StreamDecoder(codec)
    edges = [0, *sorted(cuts), len(codes)]
    return [decoder.push(codes[a:b]) for a, b in pairwise(edges)] + [decoder.finish()]


@given(frames=st.integers(0, 120), data=st.data())
@settings(deadline=None, max_examples=40)
def test_any_split_into_pieces_gives_the_whole_decode(
    tiny_codec: Codec, frames: int, data: st.DataObject
) -> None:
    codes = random_codes(tiny_codec, frames, seed=frames)
    cuts = data.draw(st.lists(st.integers(0, frames), max_size=8))
    whole = tiny_codec.decode(codes)
    waveform = torch.cat(streamed(tiny_codec, codes, cuts))
    assert waveform.shape == (frames * tiny_codec.hop_length,)
    assert torch.allclose(waveform, whole, rtol=0, atol=1e-6)


def test_one_frame_at_a_time_gives_the_whole_decode(tiny_codec: Codec, codes: Tensor) -> None:
    whole = tiny_codec.decode(codes)
    waveform = torch.cat(streamed(tiny_codec, codes, list(range(1, len(codes)))))
    assert whole.abs().max() > 0.1
    assert (waveform - whole).abs().max() < 1e-6


def test_samples_come_out_once_the_frames_they_depend_on_are_in(tiny_codec: Codec) -> None:
    context, hop = tiny_codec.context_frames, tiny_codec.hop_length
    codes = random_codes(tiny_codec, context + 6)
    pieces = streamed(tiny_codec, codes, [0, context, context + 1, context + 6])
    assert [len(piece) // hop for piece in pieces] == [0, 0, 1, 5, 0, context]


def test_a_long_stream_keeps_only_the_context(
    tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = tiny_codec.decode

    def counting(codes: Tensor) -> Tensor:
        decoded.append(len(codes))
        return decode(codes)

    monkeypatch.setattr(tiny_codec, "decode", counting)
    decoder = StreamDecoder(tiny_codec)
    for seed in range(30):
        decoder.push(random_codes(tiny_codec, 10, seed))
    assert max(decoded) == 10 + 2 * tiny_codec.context_frames


def test_a_finished_decoder_begins_a_new_stream(tiny_codec: Codec, codes: Tensor) -> None:
    decoder = StreamDecoder(tiny_codec)
    decoder.push(codes.flip(0))
    decoder.finish()
    assert len(decoder.finish()) == 0
    again = torch.cat([decoder.push(codes), decoder.finish()])
    assert torch.allclose(again, tiny_codec.decode(codes), rtol=0, atol=1e-6)


def test_a_refused_piece_leaves_the_stream_as_it_was(tiny_codec: Codec, codes: Tensor) -> None:
    decoder = StreamDecoder(tiny_codec)
    head = decoder.push(codes[:40])
    with pytest.raises(ValueError, match="from 0 to 63"):
        decoder.push(torch.full((1, 3), 64))
    waveform = torch.cat([head, decoder.push(codes[40:]), decoder.finish()])
    assert torch.allclose(waveform, tiny_codec.decode(codes), rtol=0, atol=1e-6)

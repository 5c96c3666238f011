from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.codec.codec import Codec
from worker.codec.stream import StreamDecoder
from worker.errors import OutOfMemory


def random_codes(codec: Codec, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.config.codebook_size, (frames, codec.codebooks), generator=generator)


def streamed(
    codec: Codec, codes: Tensor, cuts: list[int], first: int = 1, piece: int = 1
) -> list[Tensor]:
    """The pieces that come out when `codes` go in cut at `cuts`, the rest last."""
    decoder = StreamDecoder(codec, first, piece)
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
    first, piece = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    waveform = torch.cat(streamed(tiny_codec, codes, cuts, first, piece))
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


@pytest.fixture
def decoded(tiny_codec: Codec, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames of each decode."""
    frames: list[int] = []
    decode = tiny_codec.decode

    def counting(codes: Tensor) -> Tensor:
        frames.append(len(codes))
        return decode(codes)

    monkeypatch.setattr(tiny_codec, "decode", counting)
    return frames


def test_the_first_samples_come_as_soon_as_the_first_frames_are_known(
    tiny_codec: Codec, decoded: list[int]
) -> None:
    decoder = StreamDecoder(tiny_codec, first_frames=30)
    heard = [len(decoder.push(random_codes(tiny_codec, 1))) for _ in range(30)]
    assert heard[:29] == [0] * 29
    assert heard[29] == (30 - tiny_codec.context_frames) * tiny_codec.hop_length
    assert decoded == [30]


def test_later_samples_come_in_pieces_of_half_a_second_however_small_the_pushes(
    tiny_codec: Codec, decoded: list[int]
) -> None:
    decoder = StreamDecoder(tiny_codec, first_frames=30, piece_frames=43)
    pieces = [decoder.push(random_codes(tiny_codec, 1)) for _ in range(30 + 3 * 43)]
    final = 30 - tiny_codec.context_frames
    heard = [len(piece) // tiny_codec.hop_length for piece in pieces]
    assert [frames for frames in heard if frames] == [final, 43, 43, 43]
    assert len(decoded) == 4
    assert decoded[-1] == 43 + 2 * tiny_codec.context_frames


def test_a_large_push_is_one_decode(tiny_codec: Codec, decoded: list[int]) -> None:
    decoder = StreamDecoder(tiny_codec)
    samples = decoder.push(random_codes(tiny_codec, 300))
    assert len(samples) == (300 - tiny_codec.context_frames) * tiny_codec.hop_length
    assert decoded == [300]


def test_a_stream_shorter_than_its_first_piece_is_heard_at_its_end(
    tiny_codec: Codec, decoded: list[int]
) -> None:
    decoder = StreamDecoder(tiny_codec)
    codes = random_codes(tiny_codec, 12)
    assert len(decoder.push(codes)) == 0
    assert torch.allclose(decoder.finish(), tiny_codec.decode(codes), rtol=0, atol=1e-6)
    assert decoded == [12, 12]


def test_a_long_stream_keeps_only_the_context(tiny_codec: Codec, decoded: list[int]) -> None:
    decoder = StreamDecoder(tiny_codec, first_frames=1, piece_frames=1)
    for seed in range(30):
        decoder.push(random_codes(tiny_codec, 10, seed))
    assert max(decoded) == 10 + 2 * tiny_codec.context_frames


@pytest.mark.parametrize("sizes", [(0, 43), (30, 0), (-1, 43)])
def test_pieces_of_no_frames_are_refused(tiny_codec: Codec, sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        StreamDecoder(tiny_codec, *sizes)


def test_a_piece_without_memory_comes_with_the_next(
    tiny_codec: Codec, codes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = StreamDecoder(tiny_codec)
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory):
        patch.setattr(tiny_codec, "decode", out_of_memory)
        decoder.push(codes[:50])
    waveform = torch.cat([decoder.push(codes[50:]), decoder.finish()])
    assert torch.allclose(waveform, tiny_codec.decode(codes), rtol=0, atol=1e-6)


def out_of_memory(_: Tensor) -> Tensor:
    raise OutOfMemory("injected")


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

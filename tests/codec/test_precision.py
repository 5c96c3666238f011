from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from tests.codec.conftest import TINY, random_network
from worker.codec.codec import Codec
from worker.codec.network import ResidualUnit
from worker.codec.precision import LEAST_SNR, decode_error, with_fast_decode

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def codec() -> Codec:
    """Weights of its own: what it is turned into stays in its test."""
    return Codec(random_network(TINY), fingerprint="own", frames_at_once=128)


def snr(exact: Tensor, rounded: Tensor) -> float:
    return 10 * math.log10(exact.square().sum() / (rounded - exact).square().sum())


def test_well_behaved_weights_decode_in_float16_and_sound_the_same(
    codec: Codec, codes: Tensor
) -> None:
    exact = codec.decode(codes)
    fast = with_fast_decode(codec)
    waveform = fast.decode(codes)
    assert fast.decode_dtype == F16
    assert waveform.dtype == F32
    assert snr(exact, waveform) > LEAST_SNR + 10
    assert fast.fingerprint == "own"
    assert fast.frames_at_once == 128


def test_a_voices_codes_do_not_depend_on_the_precision_of_decoding(codec: Codec) -> None:
    waveform = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 0.3
    codes = codec.encode(waveform)
    fast = with_fast_decode(codec)
    assert torch.equal(fast.encode(waveform), codes)
    for part in (fast.network.encoder, fast.network.quantizer):
        assert {parameter.dtype for parameter in part.parameters()} == {F32}


def test_the_half_precision_decoder_replaces_the_other(codec: Codec) -> None:
    decoder = codec.network.decoder
    before = sum(parameter.nbytes for parameter in decoder.parameters())
    fast = with_fast_decode(codec)
    assert fast.network.decoder is decoder
    assert sum(parameter.nbytes for parameter in decoder.parameters()) == before // 2
    assert not decoder._forward_hooks


def test_weights_that_half_precision_would_spoil_stay_in_float32(
    codec: Codec, codes: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():  # so loud that every Snake makes what rounding left out larger
        for module in codec.network.decoder.modules():
            if isinstance(module, ResidualUnit):
                module.conv1.weight *= 8
    exact = codec.decode(codes)
    with caplog.at_level(logging.INFO):
        fast = with_fast_decode(codec)
    assert fast.decode_dtype == F32
    assert torch.equal(fast.decode(codes), exact)
    (line,) = caplog.messages
    assert line.startswith("codec decodes in float32: signal over rounding error would be float16 ")
    assert line.endswith(", and must be 40 dB")


def test_weights_that_would_overflow_float16_decode_in_bfloat16(
    codec: Codec, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.no_grad():  # through a frequency of nearly 0 Snake is linear
        codec.network.decoder.snake1.alpha.fill_(1e-4)
        codec.network.decoder.block[-1].res_unit3.conv2.weight.mul_(1e4)
        codec.network.decoder.conv2.weight.mul_(1e-4)
    with caplog.at_level(logging.INFO):
        fast = with_fast_decode(codec)
    assert fast.decode_dtype == BF16
    (line,) = caplog.messages
    assert line.startswith("codec decodes in bfloat16: float16 -inf dB, bfloat16 4")


def test_float16_is_three_bits_better_than_bfloat16(codec: Codec) -> None:
    gain = decode_error(codec, F16) - decode_error(codec, BF16)
    assert 12 < gain < 24
    assert codec.decode_dtype == F32


def test_measuring_gives_the_same_number_every_time(codec: Codec) -> None:
    assert decode_error(codec, F16) == decode_error(codec, F16)
    assert decode_error(codec, F32) == math.inf


def test_weights_that_decode_to_no_number_are_not_good_enough(codec: Codec) -> None:
    with torch.no_grad():
        codec.network.decoder.conv2.bias.fill_(math.nan)
    assert decode_error(codec, F16) == -math.inf


def test_a_codec_decodes_in_the_precision_it_is_given(codes: Tensor) -> None:
    exact = Codec(random_network(TINY), "").decode(codes)
    half = Codec(random_network(TINY), "", decode_dtype=BF16)
    assert half.decode_dtype == BF16
    assert snr(exact, half.decode(codes)) > 30

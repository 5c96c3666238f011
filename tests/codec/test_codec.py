from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DacConfig, DacModel

from worker.codec.checkpoint import load_codec, save_codec
from worker.codec.codec import Codec
from worker.codec.config import CodecConfig
from worker.codec.network import CodecNetwork
from worker.codec.receptive import context_frames
from worker.errors import InvalidCheckpoint

REAL = CodecConfig(64, (2, 4, 8, 8), 1536, (8, 8, 4, 2), 1024, 9, 1024, 8, 44100)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def oracle(tiny_config: CodecConfig) -> DacModel:
    """transformers' own network, with weights large enough to be heard."""
    torch.manual_seed(3)
    model = DacModel(DacConfig(**tiny_config.to_transformers())).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.2, 2.0)
            elif parameter.ndim == 3:
                parameter.normal_(std=0.6 / math.sqrt(parameter[0].numel()))
            else:
                parameter.normal_(std=1.0 if "codebook" in name else 0.1)
    return model


@pytest.fixture(scope="module")
def codec(oracle: DacModel, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tmp_path_factory.mktemp("transformers")
    oracle.save_pretrained(folder)
    return load_codec(folder, CPU)


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_encoding_gives_the_codes_that_transformers_gives(codec: Codec, oracle: DacModel) -> None:
    waveform = noise(200 * codec.hop_length)
    with torch.inference_mode():
        expected = oracle.encode(waveform[None, None]).audio_codes[0].T
    assert len(expected.unique()) > 20
    assert torch.equal(codec.encode(waveform), expected)


def test_decoding_gives_the_waveform_that_transformers_gives(
    codec: Codec, oracle: DacModel, codes: Tensor
) -> None:
    with torch.inference_mode():
        expected = oracle.decode(audio_codes=codes.T[None]).audio_values[0]
    waveform = codec.decode(codes)
    assert expected.abs().max() > 0.1
    assert waveform.dtype == torch.float32
    assert waveform.shape == (len(codes) * codec.hop_length,)
    assert (waveform - expected).abs().max() < 1e-5


def test_transformers_decodes_alike_what_save_codec_has_written(
    tiny_codec: Codec, codes: Tensor, tmp_path: Path
) -> None:
    save_codec(tiny_codec, tmp_path)
    model = DacModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model.decode(audio_codes=codes.T[None]).audio_values[0]
    assert (tiny_codec.decode(codes) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 100])
def test_a_waveform_of_any_length_is_zero_padded_to_whole_frames(
    tiny_codec: Codec, samples: int
) -> None:
    waveform = noise(samples)
    hop = tiny_codec.hop_length
    frames = math.ceil(samples / hop)
    codes = tiny_codec.encode(waveform)
    assert codes.shape == (frames, tiny_codec.codebooks)
    assert codes.dtype == torch.int64
    assert codes.device == CPU
    assert torch.equal(codes, tiny_codec.encode(F.pad(waveform, (0, frames * hop - samples))))


@pytest.mark.parametrize(
    "waveform", [torch.zeros(0), torch.zeros(1, 64), torch.zeros(64, dtype=torch.int16)]
)
def test_a_waveform_of_another_kind_is_refused(tiny_codec: Codec, waveform: Tensor) -> None:
    with pytest.raises(ValueError, match=r"waveform must be a floating point tensor \[N\]"):
        tiny_codec.encode(waveform)


@pytest.mark.parametrize("bad", [-1, 64, 1025])
def test_a_code_out_of_range_is_refused_with_the_range(
    tiny_codec: Codec, codes: Tensor, bad: int
) -> None:
    wrong = codes.clone()
    wrong[5, 1] = bad
    with pytest.raises(ValueError, match="from 0 to 63"):
        tiny_codec.decode(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), r"\[T, 3\], not \[4, 2\]"),
        (torch.zeros(3, dtype=torch.int64), r"\[T, 3\], not \[3\]"),
        (torch.zeros(4, 3), "must be integers, not torch.float32"),
    ],
)
def test_codes_of_another_kind_are_refused(tiny_codec: Codec, wrong: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_codec.decode(wrong)


def test_no_codes_decode_to_an_empty_waveform(tiny_codec: Codec) -> None:
    waveform = tiny_codec.decode(torch.empty(0, 3, dtype=torch.int64))
    assert waveform.shape == (0,)
    assert waveform.dtype == torch.float32


def test_the_real_codec_has_its_published_size_and_rates() -> None:
    with torch.device("meta"):
        network = CodecNetwork(REAL)
        oracle = DacModel(DacConfig(**REAL.to_transformers()))
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in oracle.named_parameters()}
    assert round(sum(shape.numel() for shape in shapes.values()) / 1e6, 1) == 76.6
    codec = Codec(network, fingerprint="")
    assert (codec.sample_rate, codec.hop_length, codec.codebooks) == (44100, 512, 9)
    assert codec.frame_rate == pytest.approx(86.13, abs=0.01)
    assert codec.context_frames == 10


@pytest.mark.parametrize("strides", [(4, 2), (2, 2), (8,), (2, 6, 2)])
def test_context_frames_is_exactly_how_far_the_decoder_looks(
    tiny_config: CodecConfig, strides: tuple[int, ...]
) -> None:
    config = replace(tiny_config, encoder_strides=strides, decoder_strides=strides)
    torch.manual_seed(0)
    decoder = CodecNetwork(config).decoder.double()
    context = context_frames(decoder)
    frames, middle = 2 * context + 9, context + 4
    latent = torch.randn(1, config.latent_dim, frames, dtype=torch.float64, requires_grad=True)
    hop = config.hop_length
    decoder(latent)[0, 0, middle * hop : (middle + 1) * hop].sum().backward()
    assert latent.grad is not None
    seen = latent.grad[0].abs().sum(dim=0).nonzero()[:, 0].tolist()
    assert seen == list(range(middle - context, middle + context + 1))


def test_a_code_changes_the_samples_of_its_context_and_no_others(
    tiny_codec: Codec, codes: Tensor
) -> None:
    changed_frame = 45
    changed = codes.clone()
    changed[changed_frame] = (changed[changed_frame] + 1) % 64
    difference = (tiny_codec.decode(codes) - tiny_codec.decode(changed)).abs()
    loudest = difference.view(len(codes), tiny_codec.hop_length).amax(dim=1)
    frames = torch.arange(len(codes))
    within = (frames - changed_frame).abs() <= tiny_codec.context_frames
    assert within.sum() < len(codes)
    assert loudest[~within].max() == 0
    assert loudest[(frames - changed_frame).abs() <= 3].min() > 0


def test_the_network_can_be_trained_through_the_quantizer(tiny_config: CodecConfig) -> None:
    torch.manual_seed(0)
    network = CodecNetwork(tiny_config)
    waveform = noise(2 * 1 * 64).view(2, 1, 64)
    reconstruction, quantized = network(waveform)
    loss = (
        F.mse_loss(reconstruction, waveform)
        + F.mse_loss(quantized.projected, quantized.chosen.detach())
        + F.mse_loss(quantized.chosen, quantized.projected.detach())
    )
    loss.backward()
    assert reconstruction.shape == waveform.shape
    untouched = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert untouched == []


def test_a_config_survives_the_transformers_spelling() -> None:
    assert CodecConfig.from_transformers(REAL.to_transformers()) == REAL


def test_a_config_is_read_as_descript_spells_it() -> None:
    kwargs = {
        "encoder_dim": 64,
        "encoder_rates": [2, 4, 8, 8],
        "latent_dim": None,
        "decoder_dim": 1536,
        "decoder_rates": [8, 8, 4, 2],
        "n_codebooks": 9,
        "codebook_size": 1024,
        "codebook_dim": 8,
        "quantizer_dropout": 0.5,
        "sample_rate": 44100,
    }
    assert CodecConfig.from_descript(kwargs) == REAL
    del kwargs["decoder_rates"]
    with pytest.raises(InvalidCheckpoint, match="decoder_rates is missing"):
        CodecConfig.from_descript(kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": None}, "codebook_size is None"),
        ({"sampling_rate": True}, "sampling_rate is True"),
        ({"downsampling_ratios": 8}, "downsampling_ratios is 8"),
        ({"upsampling_ratios": [8, 8, 4]}, "same product"),
        ({"upsampling_ratios": [5, 8, 4]}, r"decoder_strides is \(5, 8, 4\)"),
        ({"decoder_hidden_size": 1000}, "decoder_channels is 1000, must be divisible by 16"),
        ({"hop_length": 320}, "hop_length is 320"),
    ],
)
def test_an_impossible_config_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=message):
        CodecConfig.from_transformers(REAL.to_transformers() | change)


def test_a_missing_key_is_named_and_derived_keys_may_be_missing() -> None:
    values = REAL.to_transformers()
    for derived in ("upsampling_ratios", "hidden_size", "hop_length"):
        del values[derived]
    assert CodecConfig.from_transformers(values) == REAL
    del values["n_codebooks"]
    with pytest.raises(InvalidCheckpoint, match="n_codebooks is missing"):
        CodecConfig.from_transformers(values)

"""Dimensions of what is trained, and the few numbers that several stages share.

`FULL` is the model that ships; `SMOKE` is as small as runs every line in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from worker.codec.config import CodecConfig
from worker.dia.config import DecoderConfig, DiaConfig, EncoderConfig, Generation

BUILD = Path("build/train_tiny")  # ignored by git
TOOLS, DATA, CODES = BUILD / "tools", BUILD / "data", BUILD / "codes"
CODEC, MODEL = BUILD / "codec", BUILD / "dia-tiny"

SAMPLE_RATE = 44_100  # Hz, the codec's
LOUDNESS = 0.085  # RMS of every recording, full scale 1
FEMALE, MALE = "hibari", "joe"  # whom `[S1]` and `[S2]` are, where no prompt says otherwise

TRAIN, HELD_OUT, UNSEEN = "train", "held-out", "unseen"
"""What a sentence is for; `UNSEEN` ones hold words that no training sentence has."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    dia: DiaConfig
    codec: CodecConfig
    crop: int  # samples of one codec example; a multiple of the hop
    crops: int  # examples of a codec batch
    batch_frames: int  # frames of a model batch, padding included
    max_frames: int  # of one sample of the model, prompt included
    pool: int  # samples that are composed at once and sorted by length
    period_channels: tuple[int, ...]  # of the discriminators that fold the waveform
    spectrum_channels: int  # of those that look at spectra
    spectra: tuple[int, ...]  # windows of the latter, in samples


FULL = Sizes(
    # 19.8 M parameters: 39.7 MB in bfloat16.
    dia=DiaConfig(
        generation=Generation.JUNE,
        encoder=EncoderConfig(
            layers=3,
            hidden=256,
            intermediate=1024,
            heads=4,
            head_dim=64,
            vocabulary=256,
            max_positions=1024,
        ),
        decoder=DecoderConfig(
            layers=7,
            hidden=320,
            intermediate=1024,
            query_heads=5,
            kv_heads=1,
            head_dim=64,
            cross_heads=4,
            cross_head_dim=64,
            channels=9,
            vocabulary=1028,
            max_positions=3072,
        ),
        delays=(0, 8, 9, 10, 11, 12, 13, 14, 15),
    ),
    # 6.0 M parameters: 12 MB in float16.
    codec=CodecConfig(
        encoder_channels=24,
        encoder_strides=(2, 4, 8, 8),
        decoder_channels=320,
        decoder_strides=(8, 8, 4, 2),
        latent_dim=384,
        codebooks=9,
        codebook_size=1024,
        codebook_dim=8,
        sample_rate=SAMPLE_RATE,
    ),
    crop=16_384,
    crops=32,  # many small steps taught a decoder more than few large ones, in the same time
    batch_frames=52_000,
    max_frames=2_000,
    pool=512,
    period_channels=(32, 96, 192, 384, 384),
    spectrum_channels=32,
    spectra=(512, 1024, 2048),
)

SMOKE = replace(
    FULL,
    dia=replace(
        FULL.dia,
        encoder=replace(FULL.dia.encoder, layers=1, hidden=48, intermediate=64, head_dim=16),
        decoder=replace(
            FULL.dia.decoder,
            layers=2,
            hidden=48,
            intermediate=96,
            query_heads=4,
            kv_heads=2,
            head_dim=16,
            cross_head_dim=16,
        ),
    ),
    codec=replace(FULL.codec, encoder_channels=4, decoder_channels=32, latent_dim=16),
    crop=4_096,
    crops=4,
    batch_frames=600,
    max_frames=400,
    pool=8,
    period_channels=(4, 8),
    spectrum_channels=4,
    spectra=(512,),
)

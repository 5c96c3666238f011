"""The dimensions of the published weights: Dia 1.6B at 0626, and Descript's codec at 44.1 kHz."""

from __future__ import annotations

from worker.codec.config import CodecConfig
from worker.dia.config import DecoderConfig, DiaConfig, EncoderConfig, Generation

DIA = DiaConfig(
    generation=Generation.JUNE,
    encoder=EncoderConfig(
        layers=12,
        hidden=1024,
        intermediate=4096,
        heads=16,
        head_dim=128,
        vocabulary=256,
        max_positions=1024,
    ),
    decoder=DecoderConfig(
        layers=18,
        hidden=2048,
        intermediate=8192,
        query_heads=16,
        kv_heads=4,
        head_dim=128,
        cross_heads=16,
        cross_head_dim=128,
        channels=9,
        vocabulary=1028,
        max_positions=3072,
    ),
    delays=(0, 8, 9, 10, 11, 12, 13, 14, 15),
)
DAC = CodecConfig(64, (2, 4, 8, 8), 1536, (8, 8, 4, 2), 1024, 9, 1024, 8, 44_100)

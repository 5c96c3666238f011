"""How much each part of the engine and of the codec holds, by its dimensions.

Arithmetic alone: knows neither torch nor a device. Sizes are in bytes; `element` is the bytes of
a number in the type that the model, or the codec, computes in.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from worker.codec.config import CodecConfig
from worker.dia.config import DiaConfig

FLOAT32, INT64 = 4, 8

SMALL_MODEL = 50_000_000  # parameters; waking a team of threads costs more than it brings
AT_ONCE = 4  # sequences admitted in one pass: bounds its memory, and how long others wait for it
PROMPT_FRAMES = 896  # 10.4 s: holds the longest recording that a voice is recommended to have

ROWS = 2  # each slot decodes without and with its text
LOGIT_TENSORS = 18  # float32, in a draw: 13 to 15 measured, and the last step's logits
CAST = 12  # bytes of a number while it is rotated or normalised in float32
# Tensors of the greatest width that live at once in a residual unit of the codec: what its block
# and the unit read, what the unit makes of it, and the copies in another layout that cuDNN makes.
CODEC_TENSORS = 6


def is_small(config: DiaConfig) -> bool:
    """Whether a CPU decodes the model faster with one thread than with a team."""
    return parameter_count(config) < SMALL_MODEL


def parameter_count(config: DiaConfig) -> int:
    """Parameters of the model."""
    encoder, decoder = config.encoder, config.decoder
    wide, heads = encoder.hidden, encoder.heads * encoder.head_dim
    text_layer = 2 * wide + 4 * wide * heads + 3 * wide * encoder.intermediate
    hidden, cross = decoder.hidden, decoder.cross_heads * decoder.cross_head_dim
    query, own = decoder.query_heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    layer = 3 * hidden + hidden * (2 * query + 2 * own) + 3 * hidden * decoder.intermediate
    layer += 2 * hidden * cross + 2 * wide * cross  # queries and output; keys and values
    codes = decoder.channels * decoder.vocabulary
    reading = encoder.vocabulary * wide + encoder.layers * text_layer + wide
    return reading + 2 * codes * hidden + decoder.layers * layer + hidden


def longest_prompt(config: DiaConfig) -> int:
    """Frames of the longest prompt; beside it there is room for one new frame."""
    return max(1, config.decoder.max_positions - config.max_delay - 1)


def prefill_positions(config: DiaConfig, slots: int) -> int:
    """Positions of one prefill: `AT_ONCE` prompts of usual length, or the longest one alone."""
    longest = longest_prompt(config)
    return max(longest, min(slots, AT_ONCE) * min(PROMPT_FRAMES, longest))


def constants_bytes(config: DiaConfig, element: int) -> int:
    encoder, decoder = config.encoder, config.decoder
    both = max(encoder.max_positions, decoder.max_positions)
    rotary = decoder.max_positions * decoder.head_dim + encoder.max_positions * encoder.head_dim
    rotary += both * decoder.cross_head_dim
    return rotary * FLOAT32 + decoder.layers * decoder.hidden * element


def prompt_bytes(config: DiaConfig, element: int, frames: int) -> int:
    """Keys and values of a prompt's row without text, which is the same for every text."""
    decoder = config.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * frames * element


def prefill_bytes(config: DiaConfig, element: int, slots: int) -> int:
    """Texts are encoded, then prompts decoded; attention is fused and keeps no scores."""
    encoder, decoder = config.encoder, config.decoder
    positions = prefill_positions(config, slots)
    texts = min(slots, AT_ONCE) * encoder.max_positions
    heads = 3 * encoder.heads * encoder.head_dim
    # The encoder's MLP runs while its layer still holds what it read, and its attention's parts.
    layer = _layer(encoder.hidden, encoder.intermediate, heads, element)
    reading = texts * (layer + (encoder.hidden + 2 * heads) * element)
    seen = 2 * texts * decoder.cross_heads * decoder.cross_head_dim * element
    angles = (decoder.head_dim + decoder.cross_head_dim) * FLOAT32
    inputs = 2 * decoder.channels * INT64 + angles
    speaking = ROWS * positions * (_decoder_layer(config, element) + inputs) + seen
    return max(reading, speaking) + prompt_bytes(config, element, positions)


def step_bytes(config: DiaConfig, element: int, slots: int) -> int:
    decoder = config.decoder
    logits = decoder.channels * decoder.vocabulary * LOGIT_TENSORS * FLOAT32
    masks = (ROWS * decoder.max_positions + config.encoder.max_positions) * (1 + element)
    return slots * (ROWS * _decoder_layer(config, element) + logits + masks)


def _decoder_layer(config: DiaConfig, element: int) -> int:
    decoder = config.decoder
    heads = (decoder.query_heads + 2 * decoder.kv_heads) * decoder.head_dim
    embedded = (decoder.channels + 1) * (decoder.hidden * element + INT64)
    return max(embedded, _layer(decoder.hidden, decoder.intermediate, heads, element))


def _layer(hidden: int, intermediate: int, heads: int, element: int) -> int:
    """The most that one position of one row holds; `heads` is the width of q, k and v."""
    # The residual and its norm, gate and up, silu(gate), and their product.
    mlp = (2 * hidden + 4 * intermediate) * element
    attention = 2 * (hidden + heads) * element + heads * CAST
    return max(mlp, attention, hidden * (element + CAST))


def codec_frames_at_once(
    config: CodecConfig, element: int, available: int, encoding: bool = False
) -> int:
    """Frames that the codec may decode in one piece, the context on both sides included.

    Args:
        config: Dimensions of the codec.
        element: Bytes of a number in the codec's type.
        available: Bytes that it may use beside its weights.
        encoding: Asks for the frames that it may encode instead.
    """
    return available // codec_frame(config, element, encoding)


def codec_frame(config: CodecConfig, element: int, encoding: bool = False) -> int:
    """Peak of the decoder, or of the encoder, for each frame of a piece."""
    books = (2 * config.codebooks + 4) * config.latent_dim + config.codebook_size
    if encoding:  # a block's units run before it shortens
        down, base = config.encoder_strides, config.encoder_channels * config.hop_length
        widest = max((base << block) // prod(down[:block]) for block in range(len(down)))
        return max(books, CODEC_TENSORS * widest) * element
    up, base = config.decoder_strides, config.decoder_channels
    widths = [(base >> block) * prod(up[:block]) for block in range(len(up) + 1)]
    peaks = (before + CODEC_TENSORS * after for before, after in pairwise(widths))
    return max(books, *peaks) * element

"""What the engine needs of a device's memory, and how many slots that leaves room for.

Arithmetic on dimensions: knows neither torch nor the device, which `worker.startup` asks. All
sizes are in bytes; docs/memory.md says the same in words, and what it comes to on usual cards.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from worker.codec.config import CodecConfig
from worker.dia.config import DiaConfig
from worker.errors import InvalidConfig

MIB, GIB = 2**20, 2**30
FLOAT32, INT64 = 4, 8

MOST_SLOTS = 32  # where the settings do not say; each slot's own speed falls with their number
SMALL_MODEL = 50_000_000  # parameters; waking a team of threads costs more than it brings
AT_ONCE = 4  # sequences admitted in one pass: bounds its memory, and how long others wait for it
PROMPT_FRAMES = 896  # 10.4 s: holds the longest recording that a voice is recommended to have
KEPT_PROMPTS = 8  # of that length: 252 MiB for Dia 1.6B in bfloat16
CODEC_PIECE = 128 * MIB  # what the codec may use beside its weights, for each slot up to `AT_ONCE`
ALLOWANCE = 64 * MIB  # cuBLAS's workspaces (32 MiB on Hopper), the allocator's rounding; a guess

ROWS = 2  # each slot decodes without and with its text
SLOT_NUMBERS = 9 * INT64 + 3 * FLOAT32  # a slot's counters and settings, beside its history
LOGIT_TENSORS = 18  # float32, in a draw: 13 to 15 measured, and the last step's logits
CAST = 12  # bytes of a number while it is rotated or normalised in float32
# Tensors of the greatest width that live at once in a residual unit of the codec: what its block
# and the unit read, what the unit makes of it, and the copies in another layout that cuDNN makes.
CODEC_TENSORS = 6


@dataclass(frozen=True)
class Budget:
    """What of a device's memory this process may use."""

    total: int  # all that the device has
    held: int  # of it, by the driver's context and by other processes
    fraction: float  # `performance.cuda_memory_fraction`

    @property
    def available(self) -> int:
        """What the plan may use."""
        return max(0, int(self.total * self.fraction) - self.held)

    def __str__(self) -> str:
        return (
            f"{size(self.available)} are there ({self.fraction:g} of {size(self.total)}, "
            f"less {size(self.held)} that others hold)"
        )


@dataclass(frozen=True)
class CodecSize:
    """The codec beside the model."""

    config: CodecConfig
    weights: int
    element: int  # bytes of a number while it decodes


@dataclass(frozen=True)
class MemoryPlan:
    """Where the memory goes."""

    slots: int  # sequences that are decoded side by side
    places: int  # prompts of `PROMPT_FRAMES` whose keys and values are kept
    weights: int  # parameters of the model
    constants: int  # rotary tables, unconditional cross-attention, the mask of forbidden codes
    codec: int  # its parameters
    self_attention: int  # keys and values of one slot's own positions
    cross_attention: int  # keys and values of one slot's text
    state: int  # history, counters and settings of one slot
    prefill: int  # peak of a prefill of `prefill_positions`
    step: int  # peak of a step of all slots
    codec_piece: int  # what the codec may use: `codec_frames_at_once`
    kept_prompts: int  # keys and values of all places
    allowance: int = ALLOWANCE  # what no formula says

    @property
    def slot(self) -> int:
        """What every slot adds for good."""
        return self.self_attention + self.cross_attention + self.state

    @property
    def workspace(self) -> int:
        """What is used beside weights and slots; graphs keep a step's share for good."""
        passing = self.prefill + self.step + self.codec_piece
        return passing + self.kept_prompts + self.allowance

    @property
    def total(self) -> int:
        """The most that is ever in use."""
        fixed = self.weights + self.constants + self.codec
        return fixed + self.slots * self.slot + self.workspace

    @property
    def details(self) -> str:
        """What slots and workspace are made of, for the log."""
        return (
            f"a slot is KV {size(self.self_attention)}, text {size(self.cross_attention)}, state "
            f"{size(self.state)}; workspace is prefill {size(self.prefill)}, step "
            f"{size(self.step)}, codec {size(self.codec_piece)}, kept prompts "
            f"{size(self.kept_prompts)}, allowance {size(self.allowance)}"
        )

    def __str__(self) -> str:
        weights, slots = self.weights + self.constants, self.slots * self.slot
        return (
            f"weights {size(weights)}, codec {size(self.codec)}, slots {self.slots} × "
            f"{size(self.slot)} = {size(slots)}, workspace {size(self.workspace)} → "
            f"{size(self.total)}"
        )


def plan_memory(
    config: DiaConfig,
    element: int,
    codec: CodecSize,
    wanted: int | None = None,
    budget: Budget | None = None,
) -> MemoryPlan:
    """Decides how many slots there are.

    Args:
        config: Dimensions of the model.
        element: Bytes of a number in the model's type.
        codec: The codec beside it.
        wanted: `performance.slots`; `None` is as many as fit, at most `MOST_SLOTS`.
        budget: What there is; `None` is enough for anything.

    Raises:
        InvalidConfig: if what is wanted, or even one slot, does not fit.
    """
    most = wanted or MOST_SLOTS
    if budget is None:
        return _plan(config, element, codec, most)
    one = _plan(config, element, codec, 1)
    highest = min(most, budget.available // one.slot)
    plans = (_plan(config, element, codec, slots) for slots in range(highest, 0, -1))
    fits = next((plan for plan in plans if plan.total <= budget.available), None)
    if fits is None:
        raise InvalidConfig(_refusal(one, None, element, budget))
    if wanted and fits.slots < wanted:
        asked = _plan(config, element, codec, wanted)
        raise InvalidConfig(_refusal(asked, fits, element, budget))
    return fits


def _plan(config: DiaConfig, element: int, codec: CodecSize, slots: int) -> MemoryPlan:
    decoder, longest = config.decoder, longest_prompt(config)
    own, text = decoder.kv_heads * decoder.head_dim, decoder.cross_heads * decoder.cross_head_dim
    history = (decoder.max_positions + config.max_delay + 1) * decoder.channels * INT64
    # Fewer places would not hold the prompts of one prefill; so few slots do without.
    places = min(slots, KEPT_PROMPTS) if slots >= AT_ONCE else 0
    piece = longest * codec_frame(codec.config, codec.element)
    return MemoryPlan(
        slots=slots,
        places=places,
        weights=parameter_count(config) * element,
        constants=_constants(config, element),
        codec=codec.weights,
        self_attention=2 * ROWS * decoder.layers * own * decoder.max_positions * element,
        cross_attention=2 * decoder.layers * text * config.encoder.max_positions * element,
        state=history + SLOT_NUMBERS,
        prefill=_prefill(config, element, slots),
        step=_step(config, element, slots),
        codec_piece=min(min(slots, AT_ONCE) * CODEC_PIECE, piece),
        kept_prompts=places * _prompt(config, element, min(PROMPT_FRAMES, decoder.max_positions)),
    )


def _refusal(asked: MemoryPlan, fits: MemoryPlan | None, element: int, budget: Budget) -> str:
    """One line: what is needed, what is there, and the ways out."""
    what = f"performance.slots is {asked.slots}, which needs" if fits else "even one slot needs"
    ways = [f"performance.slots of at most {fits.slots}"] if fits else []
    if element >= FLOAT32:
        ways.append("bfloat16 as model.dtype")
    if budget.fraction < 1:
        ways.append("a larger performance.cuda_memory_fraction")
    ways.append("a bigger card")
    return f"{what} {asked}, and {budget}; use {' or '.join(ways)}"


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


def _constants(config: DiaConfig, element: int) -> int:
    encoder, decoder = config.encoder, config.decoder
    both = max(encoder.max_positions, decoder.max_positions)
    rotary = decoder.max_positions * decoder.head_dim + encoder.max_positions * encoder.head_dim
    rotary += both * decoder.cross_head_dim
    return rotary * FLOAT32 + decoder.layers * decoder.hidden * element


def _prompt(config: DiaConfig, element: int, frames: int) -> int:
    """Keys and values of a prompt's row without text, which is the same for every text."""
    decoder = config.decoder
    return 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * frames * element


def _prefill(config: DiaConfig, element: int, slots: int) -> int:
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
    return max(reading, speaking) + _prompt(config, element, positions)


def _step(config: DiaConfig, element: int, slots: int) -> int:
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


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.1f} MiB"

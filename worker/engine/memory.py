"""What the engine needs of a device's memory, and how many slots that leaves room for.

Adds up what `footprint` says of the parts: knows neither torch nor the device, which
`worker.startup` asks. All sizes are in bytes; docs/memory.md says the same in words, and what it
comes to on usual cards.
"""

from __future__ import annotations

from dataclasses import dataclass

from worker.codec.config import CodecConfig
from worker.dia.config import DiaConfig
from worker.engine.footprint import (
    AT_ONCE,
    FLOAT32,
    INT64,
    PROMPT_FRAMES,
    ROWS,
    codec_frame,
    constants_bytes,
    longest_prompt,
    parameter_count,
    prefill_bytes,
    prompt_bytes,
    step_bytes,
)
from worker.errors import InvalidConfig

MIB, GIB = 2**20, 2**30

MOST_SLOTS = 32  # where the settings do not say; each slot's own speed falls with their number
KEPT_PROMPTS = 8  # of that length: 252 MiB for Dia 1.6B in bfloat16
CODEC_PIECE = 128 * MIB  # what the codec may use beside its weights, for each slot up to `AT_ONCE`
ALLOWANCE = 64 * MIB  # cuBLAS's workspaces (32 MiB on Hopper), the allocator's rounding; a guess

SLOT_NUMBERS = 9 * INT64 + 3 * FLOAT32  # a slot's counters and settings, beside its history


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
    kept = min(PROMPT_FRAMES, decoder.max_positions)
    piece = longest * codec_frame(codec.config, codec.element)
    return MemoryPlan(
        slots=slots,
        places=places,
        weights=parameter_count(config) * element,
        constants=constants_bytes(config, element),
        codec=codec.weights,
        self_attention=2 * ROWS * decoder.layers * own * decoder.max_positions * element,
        cross_attention=2 * decoder.layers * text * config.encoder.max_positions * element,
        state=history + SLOT_NUMBERS,
        prefill=prefill_bytes(config, element, slots),
        step=step_bytes(config, element, slots),
        codec_piece=min(min(slots, AT_ONCE) * CODEC_PIECE, piece),
        kept_prompts=places * prompt_bytes(config, element, kept),
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


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / MIB:.1f} MiB"

"""How an engine runs its model. The defaults are those of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Recording(Protocol):
    """A step that can be played back."""

    def replay(self) -> None:
        """Runs it on what its tensors hold now."""


Record = Callable[[Callable[[], Tensor]], tuple[Recording, Tensor]]
"""Records a step; returns it with the tensor in which it leaves its logits."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs its model.

    Attributes:
        graphs: Whether steps are recorded and played back.
        record: How; `None` records CUDA graphs.
        steps_between_looks: At 1 the host waits for every step. At more it reads what it asked for
            at the look before, so that the device never waits, and an end is seen up to twice as
            many steps late.
        release_when_idle: Whether memory that the device's allocator keeps for later is given back
            when the last sequence has left.
        same_shapes: Whether every computation has the shapes of a full engine, so that no sum is
            added in another order because of who else is there: all slots and all positions in
            every step, one sequence in every admission, and no kept prompts.
        prompts: Prompts whose keys and values without text are kept; none, or four or more.
        prompt_frames: Of the longest of them.
    """

    graphs: bool = False
    record: Record | None = None
    steps_between_looks: int = 1
    release_when_idle: bool = False
    same_shapes: bool = False
    prompts: int = 4
    prompt_frames: int = 1024


DEFAULTS = EngineOptions()

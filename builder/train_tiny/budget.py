"""How far training is, where time rather than steps is what is given.

A run is spread over calls of some minutes; the schedule (learning rate, when the adversaries
join) follows the part of the whole time that has been spent.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Progress:
    """What a checkpoint remembers of the run."""

    step: int = 0
    minutes: float = 0.0  # of training so far, over all calls

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's file."""
        return asdict(self)


class Budget:
    """The clock of one call.

    Args:
        progress: of the calls before; kept up to date.
        minutes: of this call.
        schedule: minutes of all calls together.
        steps: of this call at most; then the schedule goes by steps, for tests.
    """

    def __init__(
        self, progress: Progress, minutes: float, schedule: float, steps: int | None = None
    ) -> None:
        self.progress = progress
        self._before, self._first = progress.minutes, progress.step
        self._minutes, self._schedule, self._steps = minutes, schedule, steps
        self._started = time.monotonic()

    @property
    def fraction(self) -> float:
        """The part of the whole schedule that is done, 0 to 1."""
        if self._steps is not None:
            return min(1.0, self.since_start / self._steps)
        return min(1.0, self.progress.minutes / self._schedule)

    @property
    def since_start(self) -> int:
        """Steps of this call."""
        return self.progress.step - self._first

    @property
    def spent(self) -> bool:
        """Whether this call is over, or the whole run."""
        if self._steps is not None:
            return self.since_start >= self._steps
        return self.progress.minutes - self._before >= self._minutes or self.fraction >= 1

    def tick(self) -> int:
        """One step more; returns its number, from 1."""
        self.progress.step += 1
        self.progress.minutes = self._before + (time.monotonic() - self._started) / 60
        return self.progress.step


def learning_rate(
    peak: float, warm_up: int, step: int, fraction: float, hold: float, floor: float = 0.02
) -> float:
    """Linear warm-up by steps, then the peak, then a cosine from `hold` of the run to its end.

    Args:
        peak: the highest rate.
        warm_up: steps; begins anew in each call whose optimiser begins anew.
        step: of this call.
        fraction: of the run that is done.
        hold: fraction at which the descent begins.
        floor: where it ends, as a share of the peak.
    """
    rising = min(1.0, (step + 1) / max(1, warm_up))
    falling = max(0.0, (fraction - hold) / (1 - hold))
    return peak * rising * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * falling)))

"""The network that is kept: a copy with the weights averaged over the last steps.

Also undoes weight norm, since a copy is built fresh and takes each weight as it is used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WARM_UP = 10.0  # the average forgets faster while it is young


class Average:
    """An exponential moving average of a network, in a network of the same class.

    Args:
        target: a network of the same dimensions, without weight norm; holds the average.
        decay: of one step.
        every: steps between updates; the decay is raised to that power.
    """

    def __init__(self, target: nn.Module, decay: float, every: int = 1) -> None:
        self.network = target.requires_grad_(False)
        self._decay, self._every = decay, every

    def update(self, source: nn.Module, step: int) -> None:
        """Takes in the source's weights after `step`, where it is due."""
        if step % self._every == 0:
            updates = step / self._every
            young = (1 + updates) / (WARM_UP + updates)
            self.copy(source, 1 - min(self._decay**self._every, young))

    @torch.no_grad()
    def copy(self, source: nn.Module, share: float = 1.0) -> None:
        """Moves the average towards the source by a share of the way."""
        for name, mine in self.network.named_parameters():
            mine.lerp_(current(source, name).to(mine), share)


def current(network: nn.Module, name: str) -> Tensor:
    """A parameter's value as the network uses it, weight norm applied."""
    module, _, attribute = name.rpartition(".")
    value: Tensor = getattr(network.get_submodule(module), attribute)
    return value

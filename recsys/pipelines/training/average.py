"""An exponential moving average of the weights, without the weights it began with.

    avg_t = avg_{t-1} + (1 - decay) / (1 - decay^t) * (w_t - avg_{t-1}),   t = 1, 2, … optimizer steps

The divisor 1 - decay^t makes the shares of w_1 … w_t sum to 1, as the bias correction of Adam does (Kingma and Ba 2014,
arXiv:1412.6980): the first step's average is w_1, and a short run is not held back by its initial weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from recsys.errors import CheckpointError


class WeightAverage:
    """The average of a module's parameters.

    Args:
        module: on the device that trains.
        decay: in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names, self.parameters = zip(*module.named_parameters(), strict=True)
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, the first of which is 1."""
        share = (1.0 - self.decay) / (1.0 - self.decay**step)
        torch._foreach_lerp_(self.values, list(self.parameters), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def copy_into_weights(self) -> None:
        """The module has the average for its weights from here on."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)

    def by_name(self) -> dict[str, Tensor]:
        """The average of each parameter."""
        return dict(zip(self.names, self.values, strict=True))

    def load(self, stored: Mapping[str, Tensor], path: Path) -> None:
        """Go on from the average of a checkpoint.

        Raises:
            CheckpointError: it holds none, or one of other parameters.
        """
        if set(stored) != set(self.names):
            raise CheckpointError(f"{path}: holds no average of these weights (train.ema={self.decay}); remove it")
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(stored[name])

    def _swap(self) -> None:
        for n, parameter in enumerate(self.parameters):
            parameter.data, self.values[n] = self.values[n], parameter.data

"""Dropout that takes eight random bytes from each draw: on a CPU the draws, not the products, are what costs.

    y = x * keep / P(keep),  P(keep) = min(255, round((1 - p) * 256)) / 256

Differs from torch.nn.Dropout: on a CPU the probability is rounded to a multiple of 1/256, at least one, and the
scale with it, so that the mean stays exact. On other devices it is torch's own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zeroes a share `p` of the values in training and scales the rest up.

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.kept_of_256 = min(255, max(1, round((1.0 - p) * 256)))  # of a byte's values

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.uint8)[: x.numel()].view(x.shape) < self.kept_of_256
        return x * (is_kept.to(x.dtype) * (256 / self.kept_of_256))

    def extra_repr(self) -> str:
        return f"p={self.p}"

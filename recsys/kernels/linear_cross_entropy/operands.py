"""What the operators of linear_cross_entropy take."""

from typing import NamedTuple

import torch
from torch import Tensor


class Operands(NamedTuple):
    """The arguments of linear_cross_entropy, but for its reduction."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    target: Tensor
    ignore_index: int
    logit_scale: float
    label_smoothing: float
    is_narrow: bool  # logits in bfloat16
    memory_budget_bytes: int

    @property
    def result_dtype(self) -> torch.dtype:
        """Of losses and sums: float32, or float64 if x or w is."""
        return torch.promote_types(torch.promote_types(self.x.dtype, self.w.dtype), torch.float32)


class Wanted(NamedTuple):
    """What the forward operator takes behind the operands."""

    needs_slope: bool


class Upstream(NamedTuple):
    """What the backward operator takes before the operands."""

    grad: Tensor
    state: Tensor
    needs_w: bool
    needs_bias: bool

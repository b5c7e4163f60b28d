"""What the kernels of sampled_loss are called with.

No field is None: what is absent is a tensor at hand, and never read.
"""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from recsys.kernels.bundles import block_of
from recsys.kernels.sampled_loss.settings import Kind
from recsys.kernels.sampled_loss.triton_terms import BINARY, LOGQ, SOFTMAX

_KINDS = {"softmax": SOFTMAX, "logq": LOGQ, "bce": BINARY, "gbce": BINARY}


class Inputs(NamedTuple):
    """Rows x (N, D) and their targets (N,); items w (V, D), bias (V,) and log_q (V,). All contiguous."""

    x: Tensor
    target: Tensor
    w: Tensor
    bias: Tensor
    log_q: Tensor
    V: int


class RowStates(NamedTuple):
    """What the backward pass needs of the forward, each (N,): derivatives by the targets' logits, scale and pivot."""

    of_target: Tensor
    scale: Tensor
    pivot: Tensor


class Flags(NamedTuple):
    """What a kernel is compiled for."""

    KIND: int
    HAS_BIAS: bool
    HAS_LOG_Q: bool
    D: int
    BLOCK_D: int
    ACC: Any  # dtype of sums
    PRECISION: str  # of products with derivatives

    @classmethod
    def of(cls, x: Tensor, kind: Kind, has_bias: bool, has_log_q: bool) -> "Flags":
        """For rows `x` (N, D), in the dtype of the products."""
        return cls(
            KIND=_KINDS[kind].value,
            HAS_BIAS=has_bias,
            HAS_LOG_Q=has_log_q,
            D=x.shape[1],
            BLOCK_D=block_of(max(1, x.shape[1])),
            ACC=tl.float64 if x.dtype == torch.float64 else tl.float32,
            PRECISION="tf32" if x.element_size() == 2 else "ieee",
        )

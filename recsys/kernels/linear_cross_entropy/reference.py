"""The definition of linear_cross_entropy. Dims: N rows, V items, D width."""

import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.cross_entropy_rows import Reduction


def linear_cross_entropy_reference(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The definition, in PyTorch; it allocates (N, V). The mean over no row is 0."""
    logits = logit_scale * F.linear(x, w, bias)
    losses = F.cross_entropy(
        logits, target, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    return reduced(losses, target, ignore_index, reduction)


def reduced(losses: Tensor, target: Tensor, ignore_index: int, reduction: Reduction) -> Tensor:
    """Mean over the rows that count (0 if there is none), sum, or (N,) losses as they are."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (target != ignore_index).sum().clamp(min=1)

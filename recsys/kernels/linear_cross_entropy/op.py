"""Cross entropy of a linear layer over the whole catalogue, without ever holding all of its logits.

    logits = logit_scale * (x w^T + bias)
    loss_i = lse_i - (1 - label_smoothing) * logits[i, target_i] - label_smoothing * mean_j logits[i, j]

Torch path: rows go through one buffer, chunk by chunk, and for mean and sum the gradients are formed in the forward
pass. What does not need the softmax (target, smoothing) is added in closed form. Arithmetic is float32 or wider; with
logits in bfloat16 the products and exponentials are narrow, while sums, the target's logit and its probability stay
wide.

Triton path: a block of rows meets the items tile by tile and keeps the largest logit, the sum of powers and, in the
same pass, the powers' mean of `w`: with D <= 256 that tile of (rows, D) lies in registers. It is the gradient of a
row's loss for x up to the target's part, whatever weight the loss gets later, so x needs no second pass, for any
reduction. The gradient of w needs the finished sums first and is (V, D) large: it is formed in the backward pass, where
nothing has to hold it meanwhile. That makes four matrix products; forward, x and w apart would take five. Products are
those of the inputs' dtype (two different ones: of the wider), or of bfloat16 copies for logits in bfloat16; sums are
float32. No atomics, no locks: partial sums have slots of their own and are added in order.

Paper: Wijmans et al. 2024, arXiv:2411.09009 (never the full logits); our torch path cuts rows and keeps whole
vocabulary rows, our kernels skip no small gradient, take no lock, and form the gradient of x in the forward pass.
"""

import torch
from torch import Tensor

from recsys.kernels.backend import named_backend
from recsys.kernels.cross_entropy_rows import Reduction, Settings
from recsys.kernels.factors import as_factor
from recsys.kernels.linear_cross_entropy.checks import check, check_targets
from recsys.kernels.linear_cross_entropy.chunked import chunked_loss
from recsys.kernels.linear_cross_entropy.library import path_of, rows_op
from recsys.kernels.linear_cross_entropy.operands import Operands
from recsys.kernels.linear_cross_entropy.reference import linear_cross_entropy_reference, reduced

MEMORY_BUDGET_BYTES = 64 << 20


def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    logits_dtype: torch.dtype | None = None,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> Tensor:
    """Cross entropy of `x` against all rows of `w`.

    Args:
        x: (N, D) float.
        w: (V, D) float.
        target: (N,) int64 in [0, V), or `ignore_index`.
        bias: (V,) float.
        ignore_index: rows with this target have no loss and no gradient, and the mean does not count them.
        reduction: `mean` over the rows that count (0 if there is none), `sum`, or `none`.
        logit_scale: factor of the logits, 1 / temperature.
        label_smoothing: share in [0, 1] of the target that is spread over all V.
        logits_dtype: bfloat16 for narrow logits, of all items but the target; None for those of the arithmetic.
        memory_budget_bytes: of the torch path's buffer for logits; at least one row is taken.

    Returns:
        A scalar, or (N,) for `none` with 0 at ignored rows; float32, or float64 if x or w is. On the Triton path of a
        GPU nobody waits to read the targets: a row whose target lies outside [0, V) has a loss of NaN, and so have the
        mean, the sum and the gradients.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree, a target lies outside [0, V), or `logit_scale` is
            not finite or requires a gradient.
    """
    check(x, w, target, bias, ignore_index, reduction, label_smoothing, memory_budget_bytes)
    logit_scale = as_factor("logit_scale", logit_scale)
    if logits_dtype not in (None, torch.bfloat16):
        raise ValueError(f"logits_dtype={logits_dtype}; wanted torch.bfloat16 or None")
    if named_backend() == "reference":
        if not torch.compiler.is_compiling():
            check_targets(target, target != ignore_index, len(w), ignore_index)
        dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
        return linear_cross_entropy_reference(
            x.to(dtype),
            w.to(dtype),
            target,
            bias=None if bias is None else bias.to(dtype),
            ignore_index=ignore_index,
            reduction=reduction,
            logit_scale=logit_scale,
            label_smoothing=label_smoothing,
        )
    label_smoothing = float(label_smoothing)
    if not torch.compiler.is_compiling() and path_of(x, w) == "torch":
        settings = Settings(reduction, logit_scale, label_smoothing, logits_dtype, memory_budget_bytes)
        return chunked_loss(x, w, bias, target, ignore_index, settings)
    operands = Operands(
        x=x,
        w=w,
        bias=bias,
        target=target,
        ignore_index=ignore_index,
        logit_scale=logit_scale,
        label_smoothing=label_smoothing,
        is_narrow=logits_dtype is not None,
        memory_budget_bytes=memory_budget_bytes,
    )
    losses, _, _ = rows_op(*operands, torch.is_grad_enabled() and x.requires_grad)
    return reduced(losses, target, ignore_index, reduction)

"""Cross entropy of a linear layer over the whole catalogue, without ever holding all of its logits.

    logits = logit_scale * (x w^T + bias)
    loss_i = lse_i - (1 - label_smoothing) * logits[i, target_i] - label_smoothing * mean_j logits[i, j]

The rows go through one buffer, chunk by chunk. With reduction mean or sum the gradients are formed in the forward pass,
while a chunk's exponentials are at hand; with none they are worked out again in the backward pass. What does not need
the softmax (target, smoothing) is added in closed form. Arithmetic is float32 or wider; with logits in bfloat16 the
products and exponentials are narrow, while sums, the target's logit and its probability stay wide.

Paper: Wijmans et al. 2024, arXiv:2411.09009 (never the full logits); ours cuts rows and keeps whole vocabulary rows.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.kernels.cross_entropy_rows import Reduction, Settings, rows_of

__all__ = ["Reduction", "linear_cross_entropy", "linear_cross_entropy_reference"]

MEMORY_BUDGET_BYTES = 64 << 20


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
    if reduction == "none":
        return losses
    return losses.sum() / (max(int((target != ignore_index).sum()), 1) if reduction == "mean" else 1)


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
        memory_budget_bytes: of the buffer for logits; at least one row is taken.

    Returns:
        A scalar, or (N,) for `none` with 0 at ignored rows; float32, or float64 if an input is.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree, or a target lies outside [0, V).
    """
    _check(x, w, target, bias, reduction, label_smoothing, memory_budget_bytes)
    counts = target != ignore_index
    _check_targets(target, counts, w.shape[0], ignore_index)
    if logits_dtype not in (None, torch.bfloat16):
        raise ValueError(f"logits_dtype={logits_dtype}; wanted torch.bfloat16 or None")
    settings = Settings(reduction, float(logit_scale), float(label_smoothing), logits_dtype, memory_budget_bytes)
    with torch.autocast(x.device.type, enabled=False):
        if bool(counts.all()):
            return _apply(x, w, bias, target, settings)
        rows = counts.nonzero().squeeze(1)
        losses = _apply(x.index_select(0, rows), w, bias, target.index_select(0, rows), settings)
        return losses if reduction != "none" else losses.new_zeros(len(x)).index_copy(0, rows, losses)


def _apply(x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> Tensor:
    loss = _LinearCrossEntropy.apply(x, w, bias, target, settings)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> Tensor:
        ctx.settings, ctx.dtypes = settings, (x.dtype, w.dtype, None if bias is None else bias.dtype)
        rows = rows_of(x, w, bias, target, settings)
        if settings.reduction == "none":
            ctx.save_for_backward(x, w, bias, target)
            return rows.run(None, (False, False, False))[0]
        share = 1.0 / max(len(x), 1) if settings.reduction == "mean" else 1.0
        weights = torch.full((len(x),), share, dtype=rows.x.dtype, device=x.device)
        losses, grads = rows.run(weights, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        return losses.sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.settings.reduction == "none":
            x, w, bias, target = ctx.saved_tensors
            grads = list(rows_of(x, w, bias, target, ctx.settings).run(grad, ctx.needs_input_grad[:3])[1])
        else:
            grads = [None if g is None else g * grad for g in ctx.saved_tensors]
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *cast_back, None, None


def _check(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    reduction: str,
    label_smoothing: float,
    memory_budget_bytes: int,
) -> None:
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}, w has {tuple(w.shape)}; wanted (N, D) and (V, D)")
    if len(w) == 0:
        raise ValueError("w has V=0 rows; wanted at least one item")
    if target.shape != x.shape[:1]:
        raise ValueError(f"target has the shape {tuple(target.shape)}, x has N={len(x)} rows; wanted ({len(x)},)")
    if target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype}; wanted int64")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"bias has the shape {tuple(bias.shape)}, w has V={len(w)} rows; wanted ({len(w)},)")
    for name, other in (("x", x), ("w", w), ("target", target), ("bias", bias)):
        if other is None:
            continue
        if other.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {other.device}; they must be equal")
        if name != "target" and not other.is_floating_point():
            raise ValueError(f"{name} is {other.dtype}; wanted a floating dtype")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}; wanted 'mean', 'sum' or 'none'")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing={label_smoothing}; wanted 0 to 1")
    if memory_budget_bytes < 1:
        raise ValueError(f"memory_budget_bytes={memory_budget_bytes}; wanted at least 1")


def _check_targets(target: Tensor, counts: Tensor, num_items: int, ignore_index: int) -> None:
    wrong = counts & ((target < 0) | (target >= num_items))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"target[{row}]={int(target[row])}; wanted 0 to V-1={num_items - 1}, or ignore_index={ignore_index}"
        )

"""The torch path of linear_cross_entropy: rows go through one buffer of logits, chunk by chunk.

With reduction mean or sum the gradients are formed in the forward pass, while a chunk's exponentials are at hand, and
the backward pass gives them away as they lie there: no second copy of the gradient of `w`. Who asks twice
(`retain_graph`) has them worked out again, as `none` always does.
"""

from typing import Any, cast

import torch
from torch import Tensor

from recsys.kernels.cross_entropy_rows import Settings, rows_of
from recsys.kernels.derivatives import first_only
from recsys.kernels.linear_cross_entropy.checks import check_targets

Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def chunked_loss(
    x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int, settings: Settings
) -> Tensor:
    """The reduced loss, with gradients.

    Raises:
        ValueError: a target lies outside [0, V).
    """
    counts = target != ignore_index
    check_targets(target, counts, w.shape[0], ignore_index)
    with torch.autocast(x.device.type, enabled=False):
        if bool(counts.all()):
            return _apply(x, w, bias, target, settings)
        rows = counts.nonzero().squeeze(1)
        losses = _apply(x.index_select(0, rows), w, bias, target.index_select(0, rows), settings)
        return losses if settings.reduction != "none" else losses.new_zeros(len(x)).index_copy(0, rows, losses)


def chunked_rows(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    settings: Settings,
    weights: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Grads]:
    """Losses (N,), and gradients of sum(weights * losses) where needed, without autograd; ignored rows give 0.

    Raises:
        ValueError: a target lies outside [0, V).
    """
    counts = target != ignore_index
    check_targets(target, counts, w.shape[0], ignore_index)
    with torch.autocast(x.device.type, enabled=False):
        rows = counts.nonzero().squeeze(1)
        kept = rows_of(x.index_select(0, rows), w, bias, target.index_select(0, rows), settings)
        shares = None if weights is None else weights.index_select(0, rows)
        losses, (grad_x, grad_w, grad_bias) = kept.run(shares, needs)
        if grad_x is not None:
            grad_x = grad_x.new_zeros(x.shape).index_copy_(0, rows, grad_x)
        return losses.new_zeros(len(x)).index_copy_(0, rows, losses), (grad_x, grad_w, grad_bias)


def _apply(x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> Tensor:
    loss = _Chunked.apply(x, w, bias, target, settings)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, loss)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> Tensor:
        ctx.settings, ctx.grads, ctx.dtypes = settings, None, [None if t is None else t.dtype for t in (x, w, bias)]
        ctx.save_for_backward(x, w, bias, target)
        rows = rows_of(x, w, bias, target, settings)
        if settings.reduction == "none" or not any(ctx.needs_input_grad):
            losses = rows.run(None, (False, False, False))[0]
            return losses if settings.reduction == "none" else losses.sum() * _share(settings, len(x))
        losses, ctx.grads = rows.run(_weights(x, rows.x.dtype, settings), ctx.needs_input_grad[:3])
        return losses.sum() * _share(settings, len(x))

    @staticmethod
    @first_only("linear_cross_entropy")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = _grads_again(ctx, grad)
        else:
            for each in grads:
                if each is not None:
                    each.mul_(grad)
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *cast_back, None, None


def _grads_again(ctx: Any, grad: Tensor) -> Grads:
    x, w, bias, target = ctx.saved_tensors
    rows = rows_of(x, w, bias, target, ctx.settings)
    weights = grad if ctx.settings.reduction == "none" else grad * _weights(x, rows.x.dtype, ctx.settings)
    return rows.run(weights, ctx.needs_input_grad[:3])[1]


def _weights(x: Tensor, dtype: torch.dtype, settings: Settings) -> Tensor:
    return torch.full((len(x),), _share(settings, len(x)), dtype=dtype, device=x.device)


def _share(settings: Settings, num_rows: int) -> float:
    return 1.0 / max(num_rows, 1) if settings.reduction == "mean" else 1.0

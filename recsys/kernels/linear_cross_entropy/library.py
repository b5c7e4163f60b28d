# ruff: noqa: ARG001 (a fake takes what its op takes, used or not)
"""linear_cross_entropy as a pair of custom ops: what torch.compile sees, and the Triton path's way through autograd.

    recsys::linear_cross_entropy           losses (N,), slope (N, D): their gradients for the rows of x, state (2, N)
    recsys::linear_cross_entropy_backward  gradients of w (V, D) and bias (V,), worked out anew from x and w

The path is chosen inside, so that it is the same in a compiled graph and out of it. The state is for the backward op of
the same path; the torch path needs none.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from recsys.kernels.backend import Backend, choose_backend, named_backend
from recsys.kernels.cross_entropy_rows import Settings
from recsys.kernels.linear_cross_entropy.checks import check_targets
from recsys.kernels.linear_cross_entropy.chunked import chunked_rows
from recsys.kernels.linear_cross_entropy.fused import MAX_WIDTH, OP, fused_backward, fused_forward

_log = logging.getLogger("recsys.kernels")


def path_of(x: Tensor, w: Tensor) -> Backend:
    """The path for these tensors.

    Raises:
        RuntimeError: Triton is forced where its kernels cannot run.
    """
    chosen = choose_backend(OP, w if w.dtype == torch.float64 else x)
    if chosen != "triton" or x.shape[1] <= MAX_WIDTH:
        return chosen
    if named_backend() == "triton":
        raise RuntimeError(
            f"RECSYS_KERNELS=triton: {OP} has kernels for D up to {MAX_WIDTH}, x has D={x.shape[1]}; "
            "unset RECSYS_KERNELS to use the torch path"
        )
    _say_too_wide(x.shape[1])
    return "torch"


@torch.library.custom_op("recsys::linear_cross_entropy", mutates_args=())
def rows_op(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    logit_scale: float,
    label_smoothing: float,
    is_narrow: bool,
    memory_budget_bytes: int,
    needs_slope: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, slope ((0, D) where not needed) and state."""
    if path_of(x, w) == "triton":
        if not x.is_cuda:
            check_targets(target, target != ignore_index, len(w), ignore_index)
        return fused_forward(x, w, bias, target, ignore_index, logit_scale, label_smoothing, is_narrow, needs_slope)
    settings = _settings(logit_scale, label_smoothing, is_narrow, memory_budget_bytes)
    dtype = _result_dtype(x, w)
    ones = torch.ones(len(x), dtype=dtype, device=x.device) if needs_slope else None
    losses, (slope, _, _) = chunked_rows(x, w, bias, target, ignore_index, settings, ones, (needs_slope, False, False))
    return losses, x.new_empty((0, x.shape[1]), dtype=dtype) if slope is None else slope, losses.new_zeros(2, len(x))


@rows_op.register_fake
def _rows_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignore_index: int,
    logit_scale: float,
    label_smoothing: float,
    is_narrow: bool,
    memory_budget_bytes: int,
    needs_slope: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, N = _result_dtype(x, w), x.shape[0]
    slope = x.new_empty((N if needs_slope else 0, x.shape[1]), dtype=dtype)
    return x.new_empty(N, dtype=dtype), slope, x.new_empty((2, N), dtype=dtype)


@torch.library.custom_op("recsys::linear_cross_entropy_backward", mutates_args=())
def item_grads_op(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    state: Tensor,
    ignore_index: int,
    logit_scale: float,
    label_smoothing: float,
    is_narrow: bool,
    memory_budget_bytes: int,
    needs_w: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad * losses) for w and bias; empty where not needed."""
    if path_of(x, w) == "triton":
        return fused_backward(
            grad, x, w, bias, target, state, ignore_index, logit_scale, label_smoothing, is_narrow, needs_w, needs_bias
        )
    settings = _settings(logit_scale, label_smoothing, is_narrow, memory_budget_bytes)
    _, (_, grad_w, grad_bias) = chunked_rows(
        x, w, bias, target, ignore_index, settings, grad.to(_result_dtype(x, w)), (False, needs_w, needs_bias)
    )
    empty_w, empty_bias = _item_grads_like(x, w, bias, False, False)
    return (
        empty_w if grad_w is None else grad_w.to(w.dtype),
        empty_bias if grad_bias is None else grad_bias.to(empty_bias.dtype),
    )


@item_grads_op.register_fake
def _item_grads_fake(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    state: Tensor,
    ignore_index: int,
    logit_scale: float,
    label_smoothing: float,
    is_narrow: bool,
    memory_budget_bytes: int,
    needs_w: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    return _item_grads_like(x, w, bias, needs_w, needs_bias)


def _item_grads_like(
    x: Tensor, w: Tensor, bias: Tensor | None, needs_w: bool, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    V, D = w.shape
    dtype = _result_dtype(x, w) if bias is None else bias.dtype
    return w.new_empty((V if needs_w else 0, D)), x.new_empty(V if needs_bias else 0, dtype=dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, bias, target, *settings, _ = inputs
    _, slope, state = output
    ctx.mark_non_differentiable(slope, state)
    ctx.save_for_backward(x, w, bias, target, slope, state)
    ctx.settings = settings


def _differentiate(ctx: Any, grad: Tensor, _slope: Tensor, _state: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, target, slope, state = ctx.saved_tensors
    needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
    grad = torch.where(target == ctx.settings[0], 0.0, grad)
    grad_x = (slope * grad[:, None]).to(x.dtype) if needs_x else None
    if not (needs_w or needs_bias):
        return grad_x, *[None] * 9
    grad_w, grad_bias = item_grads_op(grad, x, w, bias, target, state, *ctx.settings, needs_w, needs_bias)
    return grad_x, grad_w if needs_w else None, grad_bias if needs_bias else None, *[None] * 7


rows_op.register_autograd(_differentiate, setup_context=_remember)


def _settings(logit_scale: float, label_smoothing: float, is_narrow: bool, memory_budget_bytes: int) -> Settings:
    narrow = torch.bfloat16 if is_narrow else None
    return Settings("none", logit_scale, label_smoothing, narrow, memory_budget_bytes)


def _result_dtype(x: Tensor, w: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)


@cache
def _say_too_wide(width: int) -> None:
    _log.warning("%s: D=%d is wider than the Triton kernels' %d, so it runs in plain torch", OP, width, MAX_WIDTH)

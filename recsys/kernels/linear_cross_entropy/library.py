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
from recsys.kernels.linear_cross_entropy.operands import Operands, Upstream, Wanted
from recsys.kernels.operands import schema_of, taken_apart

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


@torch.library.custom_op("recsys::linear_cross_entropy", mutates_args=(), schema=schema_of(Operands, Wanted, returns=3))
def rows_op(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, slope ((0, D) where not needed) and state."""
    operands, needs_slope = Operands(*given[:-1]), given[-1]
    x, w, bias, target, ignore_index = operands[:5]
    if path_of(x, w) == "triton":
        if not x.is_cuda:
            check_targets(target, target != ignore_index, len(w), ignore_index)
        return fused_forward(operands, needs_slope)
    dtype, N = operands.result_dtype, len(x)
    ones = torch.ones(N, dtype=dtype, device=x.device) if needs_slope else None
    needs = needs_slope, False, False
    losses, (slope, _, _) = chunked_rows(x, w, bias, target, ignore_index, _settings(operands), ones, needs)
    return losses, x.new_empty((0, x.shape[1]), dtype=dtype) if slope is None else slope, losses.new_zeros(2, N)


@rows_op.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    operands, needs_slope = Operands(*given[:-1]), given[-1]
    x, dtype, N = operands.x, operands.result_dtype, operands.x.shape[0]
    slope = x.new_empty((N if needs_slope else 0, x.shape[1]), dtype=dtype)
    return x.new_empty(N, dtype=dtype), slope, x.new_empty((2, N), dtype=dtype)


@torch.library.custom_op(
    "recsys::linear_cross_entropy_backward", mutates_args=(), schema=schema_of(Upstream, Operands, returns=2)
)
def item_grads_op(*given: Any) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad * losses) for w and bias; empty where not needed."""
    up, operands = taken_apart(given, Upstream, Operands)
    x, w, bias, target, ignore_index = operands[:5]
    if path_of(x, w) == "triton":
        return fused_backward(up, operands)
    weights, needs = up.grad.to(operands.result_dtype), (False, up.needs_w, up.needs_bias)
    _, grads = chunked_rows(x, w, bias, target, ignore_index, _settings(operands), weights, needs)
    empty = _item_grads_like(operands, False, False)
    of_w, of_bias = (like if grad is None else grad.to(like.dtype) for grad, like in zip(grads[1:], empty, strict=True))
    return of_w, of_bias


@item_grads_op.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    up, operands = taken_apart(given, Upstream, Operands)
    return _item_grads_like(operands, up.needs_w, up.needs_bias)


def _item_grads_like(operands: Operands, needs_w: bool, needs_bias: bool) -> tuple[Tensor, Tensor]:
    w, bias = operands.w, operands.bias
    dtype = operands.result_dtype if bias is None else bias.dtype
    V, D = w.shape
    return w.new_empty((V if needs_w else 0, D)), w.new_empty(V if needs_bias else 0, dtype=dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, bias, target, *settings, _ = inputs
    _, slope, state = output
    ctx.mark_non_differentiable(slope, state)
    ctx.save_for_backward(x, w, bias, target, slope, state)
    ctx.settings = settings


def _differentiate(ctx: Any, grad: Tensor, _slope: Tensor, _state: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, target, slope, state = ctx.saved_tensors
    operands = Operands(x, w, bias, target, *ctx.settings)
    needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
    grad = torch.where(target == operands.ignore_index, 0.0, grad)
    grad_x = (slope * grad[:, None]).to(x.dtype) if needs_x else None
    grad_w = grad_bias = None
    if needs_w or needs_bias:
        grad_w, grad_bias = item_grads_op(*Upstream(grad, state, needs_w, needs_bias), *operands)
    grads = grad_x, grad_w if needs_w else None, grad_bias if needs_bias else None
    return *grads, *[None] * (len(Operands._fields) + len(Wanted._fields) - len(grads))


rows_op.register_autograd(_differentiate, setup_context=_remember)


def _settings(operands: Operands) -> Settings:
    return Settings(
        reduction="none",
        logit_scale=operands.logit_scale,
        label_smoothing=operands.label_smoothing,
        logits_dtype=torch.bfloat16 if operands.is_narrow else None,
        memory_budget_bytes=operands.memory_budget_bytes,
    )


@cache
def _say_too_wide(width: int) -> None:
    _log.warning("%s: D=%d is wider than the Triton kernels' %d, so it runs in plain torch", OP, width, MAX_WIDTH)

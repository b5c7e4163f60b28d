"""Losses over a few sampled negatives, without ever holding the vectors of all rows' negatives.

    s_i  = <x_i, w_target> + bias_target,   s_ij = <x_i, w_j> + bias_j   for the k_i negatives j of row i

    softmax  log(e^(s_i - log q_i) + sum_j e^(s_ij - log q_j)) - (s_i - log q_i)     q absent: no correction
    logq     (1 - p_i) (log sum_j e^(s_ij - log q'_ij) - s_i)                         q'_ij = q_j / (1 - q_i)
             p_i = sigmoid(s_i - log(1/k_i sum_j e^(s_ij - log q'_ij))), held constant
    bce      (softplus(-s_i) + sum_j softplus(s_ij)) / (k_i + 1)
    gbce     (beta softplus(-s_i) + sum_j softplus(s_ij)) / (k_i + 1)

A negative that is the row's target, and a slot that holds -1, is left out and not counted in k_i. Rows that share their
negatives meet them in matrix products. Ids and log q out of range are refused on the CPU; on a GPU, where to look would
be to wait, an id that is out of range makes its row's loss NaN.

Papers: Jean et al. 2015, arXiv:1412.2007 (softmax); Khrylchenko et al. 2025, arXiv:2507.09331 (logq); Petrov and
Macdonald 2023, arXiv:2308.07192 (gbce; there in float64 through the logit of sigmoid(s)^beta, here as the equal
beta * log sigmoid(s), which neither overflows nor needs a clamp).

Dims: N rows, G lists of negatives, K negatives a list, V items, D width.
"""

from typing import Any, cast

import torch
from torch import Tensor

from recsys.kernels.backend import choose_backend
from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.sampled_loss.checks import check_ids, check_shapes, check_width
from recsys.kernels.sampled_loss.reference import sampled_loss_reference
from recsys.kernels.sampled_loss.rows import Rows, SampledLoss
from recsys.kernels.sampled_loss.settings import Kind, Settings


def sampled_loss(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    groups: Tensor | None = None,
    kind: Kind = "softmax",
    bias: Tensor | None = None,
    log_q: Tensor | None = None,
    beta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """A loss of `x` against the targets' rows of `w` and the negatives' alone.

    Args:
        x: (N, D) float.
        w: (V, D) float.
        target: (N,) int64 in [0, V).
        negatives: int64 in [0, V), or -1 for none: (K,) shared by all rows, (G, K) with `groups`, or (N, K).
        groups: (N,) int64 in [0, G), which list each row has.
        kind: `softmax`, `logq`, `bce` or `gbce`.
        bias: (V,) float.
        log_q: (V,) float, log of the probability that one draw gives the item: needed by `logq`, whose probabilities
            are below 1; of `softmax` any expected counts; a constant added to them changes nothing.
        beta: factor of the target's term of `gbce`, in (0, 1].
        reduction: `mean` over the rows (0 if there is none), `sum`, or `none`.

    Returns:
        A scalar, or (N,) for `none`; float32, or float64 if x or w is.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree, or an argument does not belong to this kind.
    """
    check_shapes(x, w, target, negatives, groups, bias, log_q, kind, beta, reduction)
    beta = float(beta) if kind == "gbce" else 1.0
    if torch.compiler.is_compiling():
        return _by_op(x, w, target, negatives, groups, kind, bias, log_q, beta, reduction)
    backend = _backend(x)
    if backend == "triton":
        return _by_op(x, w, target, negatives, groups, kind, bias, log_q, beta, reduction)
    check_ids(target, negatives, groups, log_q, kind, len(w))
    if backend == "reference":
        arguments: dict[str, Any] = {"kind": kind, "bias": bias, "log_q": log_q, "beta": beta, "reduction": reduction}
        return sampled_loss_reference(x, w, target, negatives, groups=groups, **arguments)
    settings = Settings(kind, beta, reduction)
    with torch.autocast(x.device.type, enabled=False):
        loss = SampledLoss.apply(x, w, bias, target, negatives, groups, log_q, settings)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, loss)


def _backend(x: Tensor) -> str:
    backend = choose_backend("sampled_loss", x)
    return "torch" if backend == "triton" and not check_width(x) else backend


def _by_op(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Tensor,
    groups: Tensor | None,
    kind: str,
    bias: Tensor | None,
    log_q: Tensor | None,
    beta: float,
    reduction: str,
) -> Tensor:
    losses = _losses(x, w, bias, target, negatives, groups, log_q, kind, beta)[0]
    if reduction == "none":
        return losses
    return losses.sum() / max(x.shape[0], 1) if reduction == "mean" else losses.sum()


@torch.library.custom_op("recsys::sampled_loss", mutates_args=())
def _losses(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    groups: Tensor | None,
    log_q: Tensor | None,
    kind: str,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (N,), and the rows' states for the backward pass, which the Triton path alone fills."""
    known = cast(Kind, kind)
    check_ids(target, negatives, groups, log_q, kind, len(w))
    if _backend(x) == "triton":
        from recsys.kernels.sampled_loss.triton_path import TritonPath

        losses, states = TritonPath(x, w, bias, target, negatives, groups, log_q, known).forward(beta)
        return losses, states.of_target, states.scale, states.pivot
    rows = Rows(x, w, bias, target, negatives, groups, log_q, Settings(known, beta, "none"))
    losses = rows.run(None, (False, False, False))[0].clone()
    return losses, losses.new_empty(0), losses.new_empty(0), losses.new_empty(0)


@_losses.register_fake
def _(x: Tensor, w: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
    N = x.shape[0]  # len() would fix it
    losses = x.new_empty(N, dtype=dtype)
    N = N if _backend(x) == "triton" else 0
    return losses, losses.new_empty(N), losses.new_empty(N), losses.new_empty(N)


@torch.library.custom_op("recsys::sampled_loss_backward", mutates_args=())
def _gradients(
    weights: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    groups: Tensor | None,
    log_q: Tensor | None,
    states: list[Tensor],
    kind: str,
    beta: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and bias; empty where not needed."""
    known, (needs_x, needs_w, needs_bias) = cast(Kind, kind), needs
    if _backend(x) == "triton":
        from recsys.kernels.sampled_loss.triton_bundles import RowStates
        from recsys.kernels.sampled_loss.triton_path import TritonPath

        path = TritonPath(x, w, bias, target, negatives, groups, log_q, known)
        grads = path.backward(weights, RowStates(*states), (needs_x, needs_w, needs_bias))
    else:
        rows = Rows(x, w, bias, target, negatives, groups, log_q, Settings(known, beta, "none"))
        grads = rows.run(weights.to(rows.s.dtype), (needs_x, needs_w, needs_bias))[1]
    leaves = (x, w, x if bias is None else bias)
    dx, dw, dbias = (
        leaf.new_empty(0) if grad is None else grad.to(leaf.dtype).contiguous()
        for grad, leaf in zip(grads, leaves, strict=True)
    )
    return dx, dw, dbias


@_gradients.register_fake
def _(_weights: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    leaves = (x, w, x if bias is None else bias)
    dx, dw, dbias = (
        leaf.new_empty(leaf.shape if is_needed else (0,)) for leaf, is_needed in zip(leaves, rest[-1], strict=True)
    )
    return dx, dw, dbias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.kind, ctx.beta = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, weights: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, of_target, scale, pivot = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    grads = _gradients(weights, *tensors, [of_target, scale, pivot], ctx.kind, ctx.beta, needs)
    return *(grad if is_needed else None for grad, is_needed in zip(grads, needs, strict=True)), *([None] * 6)


_losses.register_autograd(_backward, setup_context=_keep)

"""Cross entropy of a linear layer over the whole catalogue, without ever holding all of its logits.

    logits = logit_scale * (x w^T + bias)
    loss_i = lse_i - (1 - label_smoothing) * logits[i, target_i] - label_smoothing * mean_j logits[i, j]

The rows go through one buffer, chunk by chunk. With reduction mean or sum the gradients are formed in the forward pass,
while a chunk's exponentials are at hand; with none they are worked out again in the backward pass. What does not need
the softmax (target, smoothing) is added in closed form. Arithmetic is float32 or wider.

Paper: Wijmans et al. 2024, arXiv:2411.09009 (never the full logits); ours cuts rows and keeps whole vocabulary rows.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Reduction = Literal["mean", "sum", "none"]
MEMORY_BUDGET_BYTES = 64 << 20
CACHE_BYTES = 16 << 20  # a buffer beyond this is slower: measured by benchmarks/linear_cross_entropy.py
LOG2_E = math.log2(math.e)  # powers of 2: exp is 100 times slower on the CPU where it underflows
EFFICIENT_ROWS = 64  # a chunk of fewer rows is slower, whatever the cache


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
        memory_budget_bytes: of the buffer for logits; at least one row is taken.

    Returns:
        A scalar, or (N,) for `none` with 0 at ignored rows; float32, or float64 if an input is.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree, or a target lies outside [0, V).
    """
    _check(x, w, target, bias, reduction, label_smoothing, memory_budget_bytes)
    counts = target != ignore_index
    _check_targets(target, counts, w.shape[0], ignore_index)
    settings = _Settings(reduction, float(logit_scale), float(label_smoothing), memory_budget_bytes)
    with torch.autocast(x.device.type, enabled=False):
        if bool(counts.all()):
            return _apply(x, w, bias, target, settings)
        rows = counts.nonzero().squeeze(1)
        losses = _apply(x.index_select(0, rows), w, bias, target.index_select(0, rows), settings)
        return losses if reduction != "none" else losses.new_zeros(len(x)).index_copy(0, rows, losses)


@dataclass(frozen=True)
class _Settings:
    reduction: Reduction
    logit_scale: float
    label_smoothing: float
    memory_budget_bytes: int


def _apply(x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: _Settings) -> Tensor:
    loss = _LinearCrossEntropy.apply(x, w, bias, target, settings)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: _Settings) -> Tensor:
        ctx.settings, ctx.dtypes = settings, (x.dtype, w.dtype, None if bias is None else bias.dtype)
        rows = _Rows(x, w, bias, target, settings)
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
            grads = list(_Rows(x, w, bias, target, ctx.settings).run(grad, ctx.needs_input_grad[:3])[1])
        else:
            grads = [None if g is None else g * grad for g in ctx.saved_tensors]
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *cast_back, None, None


class _Rows:
    """One pass over the rows, chunk by chunk, through one buffer of logits."""

    def __init__(self, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: _Settings) -> None:
        dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
        self.x = x.detach().to(dtype) * settings.logit_scale
        self.w = w.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype) * settings.logit_scale
        self.target, self.settings = target, settings

    def run(
        self, weights: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """Losses (N,), and gradients of sum(weights * losses) for x, w and bias, None where not needed.

        With e = exp(logits - max) and z its row sums, the softmax part of a gradient is (e / z) w for x and
        (weights / z * e)^T x for w: z divides a narrow matrix, never the wide one.
        """
        x, w = self.x, self.w
        losses = x.new_empty(len(x))
        grad_x, grad_w, grad_bias = self._new_grads(needs)
        size = _chunk_rows(len(x), len(w), x.element_size(), self.settings.memory_budget_bytes)
        buffer = x.new_empty(size, len(w))
        for start in range(0, len(x), size):
            chunk = slice(start, min(start + size, len(x)))
            e, z = self._exponentials(chunk, buffer, losses)
            if weights is None:
                continue
            rate = weights[chunk, None] / z  # (rows, 1)
            if grad_x is not None:
                torch.mm(e, w, out=grad_x[chunk]).mul_(rate)
            if grad_w is not None:
                grad_w.addmm_(e.t(), x[chunk] * rate)
            if grad_bias is not None:
                grad_bias.addmv_(e.t(), rate.squeeze(1))
        if weights is not None:
            self._subtract_targets(weights, grad_x, grad_w, grad_bias)
        return losses, (grad_x, grad_w, grad_bias)

    def _new_grads(self, needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_x, needs_w, needs_bias = needs
        grad_x = torch.empty_like(self.x, memory_format=torch.contiguous_format) if needs_x else None
        grad_w = torch.zeros_like(self.w, memory_format=torch.contiguous_format) if needs_w else None
        return grad_x, grad_w, self.w.new_zeros(len(self.w)) if needs_bias else None

    def _exponentials(self, chunk: slice, buffer: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """exp(logits - max) (rows, V) in `buffer` and its sums (rows, 1); writes the chunk's losses."""
        x, target, smoothing = self.x[chunk], self.target[chunk], self.settings.label_smoothing
        logits = buffer[: len(x)]
        if self.bias is None:
            torch.mm(x, self.w.t(), out=logits)
        else:
            torch.addmm(self.bias, x, self.w.t(), out=logits)
        wanted = (1.0 - smoothing) * logits.gather(1, target[:, None])  # (rows, 1)
        if smoothing > 0:
            wanted += smoothing * logits.mean(dim=1, keepdim=True)
        highest = logits.amax(dim=1, keepdim=True)
        e = logits.sub_(highest).mul_(LOG2_E).exp2_()
        z = e.sum(dim=1, keepdim=True)
        losses[chunk] = (highest + z.log() - wanted).squeeze(1)
        return e, z

    def _subtract_targets(
        self, weights: Tensor, grad_x: Tensor | None, grad_w: Tensor | None, grad_bias: Tensor | None
    ) -> None:
        """The part of the gradients without the softmax: -(1 - smoothing) at the target, -smoothing / V everywhere."""
        smoothing, num_items = self.settings.label_smoothing, len(self.w)
        hit = weights * (1.0 - smoothing)  # (N,)
        if grad_x is not None:
            grad_x.sub_(self.w.index_select(0, self.target).mul_(hit[:, None]))
            if smoothing > 0:
                grad_x.addr_(weights, self.w.mean(dim=0), alpha=-smoothing)
            grad_x.mul_(self.settings.logit_scale)
        if grad_w is not None:
            grad_w.index_add_(0, self.target, self.x * hit[:, None], alpha=-1)
            if smoothing > 0:
                grad_w.sub_(torch.mv(self.x.t(), weights), alpha=smoothing / num_items)
        if grad_bias is not None:
            grad_bias.index_add_(0, self.target, hit, alpha=-1)
            if smoothing > 0:
                grad_bias.sub_(weights.sum(), alpha=smoothing / num_items)
            grad_bias.mul_(self.settings.logit_scale)


def _chunk_rows(num_rows: int, num_items: int, element_bytes: int, budget_bytes: int) -> int:
    """Rows of a chunk: within the budget; small enough for the cache, yet enough for an efficient matrix product."""
    row_bytes = num_items * element_bytes
    allowed = max(1, budget_bytes // row_bytes)
    return max(1, min(num_rows, allowed, max(CACHE_BYTES // row_bytes, EFFICIENT_ROWS)))


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

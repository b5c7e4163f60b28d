"""Losses over a few sampled negatives, without ever holding the vectors of all rows' negatives.

    s_i  = <x_i, w_target> + bias_target,   s_ij = <x_i, w_j> + bias_j   for the k_i negatives j of row i

    softmax  log(e^(s_i - log q_i) + sum_j e^(s_ij - log q_j)) - (s_i - log q_i)     q absent: no correction
    logq     (1 - p_i) (log sum_j e^(s_ij - log q'_ij) - s_i)                         q'_ij = q_j / (1 - q_i)
             p_i = sigmoid(s_i - log(1/k_i sum_j e^(s_ij - log q'_ij))), held constant
    bce      (softplus(-s_i) + sum_j softplus(s_ij)) / (k_i + 1)
    gbce     (beta softplus(-s_i) + sum_j softplus(s_ij)) / (k_i + 1)

A negative that is the row's target, and a slot that holds -1, is left out and not counted in k_i. Rows that share their
negatives meet them in one matrix product; the gradients are formed in the same pass, tile by tile.

Papers: Jean et al. 2015, arXiv:1412.2007 (softmax); Khrylchenko et al. 2025, arXiv:2507.09331 (logq); Petrov and
Macdonald 2023, arXiv:2308.07192 (gbce; there in float64 through the logit of sigmoid(s)^beta, here as the equal
beta * log sigmoid(s), which neither overflows nor needs a clamp).

Dims: N rows, G lists of negatives, K negatives a list, V items, D width.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.sampled_checks import check_negatives, check_sampled
from recsys.kernels.sampled_tiles import Kind, Tile, plan_tiles, row_terms

__all__ = ["Kind", "sampled_loss", "sampled_loss_reference"]


def sampled_loss_reference(
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
    """The definition, in PyTorch; it allocates (N, K, D). The mean over no row is 0."""
    ids = negatives.expand(len(x), -1) if negatives.dim() == 1 else negatives if groups is None else negatives[groups]
    counts = (ids >= 0) & (ids != target[:, None])  # (N, K)
    ids = ids.clamp(min=0)
    s = (x * w[target]).sum(1)  # (N,)
    s_neg = torch.einsum("nd,nkd->nk", x, w[ids])
    if bias is not None:
        s, s_neg = s + bias[target], s_neg + bias[ids]
    if kind in ("bce", "gbce"):
        positive = F.logsigmoid(s) * (beta if kind == "gbce" else 1.0)
        negative = F.logsigmoid(-s_neg).masked_fill(~counts, 0.0).sum(1)
        losses = -(positive + negative) / (1 + counts.sum(1))
    elif kind == "softmax":
        if log_q is not None:
            s, s_neg = s - log_q[target], s_neg - log_q[ids]
        s_neg = s_neg.masked_fill(~counts, -torch.inf)
        losses = torch.cat([s[:, None], s_neg], 1).logsumexp(1) - s
    else:
        assert log_q is not None
        s_neg = s_neg - log_q[ids] + torch.log1p(-log_q[target].exp())[:, None]
        has_any = counts.any(1)
        nothing = torch.zeros_like(s).masked_fill(has_any, -torch.inf)[:, None]  # keeps the sum of no term finite
        lse = torch.cat([s_neg.masked_fill(~counts, -torch.inf), nothing], 1).logsumexp(1)
        num = counts.sum(1).clamp(min=1).to(s.dtype)  # the log of an integer is a float32
        rest = torch.sigmoid(lse - num.log() - s).detach()  # 1 - p
        losses = has_any * rest * (lse - s)
    if reduction == "none":
        return losses
    return losses.sum() / (max(len(x), 1) if reduction == "mean" else 1)


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
        A scalar, or (N,) for `none`; float32, or float64 if an input is.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree, or an argument does not belong to this kind.
    """
    check_sampled(x, w, target, bias, log_q, kind, beta, reduction)
    check_negatives(len(x), len(w), negatives, groups)
    settings = _Settings(kind, float(beta) if kind == "gbce" else 1.0, reduction)
    with torch.autocast(x.device.type, enabled=False):
        loss = _SampledLoss.apply(x, w, bias, target, negatives, groups, log_q, settings)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, loss)


@dataclass(frozen=True)
class _Settings:
    kind: Kind
    beta: float
    reduction: Reduction


class _SampledLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        target: Tensor,
        negatives: Tensor,
        groups: Tensor | None,
        log_q: Tensor | None,
        settings: _Settings,
    ) -> Tensor:
        ctx.settings, ctx.dtypes = settings, (x.dtype, w.dtype, None if bias is None else bias.dtype)
        rows = _Rows(x, w, bias, target, negatives, groups, log_q, settings)
        if settings.reduction == "none":
            ctx.save_for_backward(x, w, bias, target, negatives, groups, log_q)
            return rows.run(None, (False, False, False))[0]
        share = 1.0 / max(len(x), 1) if settings.reduction == "mean" else 1.0
        losses, grads = rows.run(torch.full_like(rows.s, share), ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        return losses.sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.settings.reduction == "none":
            x, w, bias, target, negatives, groups, log_q = ctx.saved_tensors
            rows = _Rows(x, w, bias, target, negatives, groups, log_q, ctx.settings)
            grads = list(rows.run(grad.to(rows.s.dtype), ctx.needs_input_grad[:3])[1])
        else:
            grads = [None if g is None else g * grad for g in ctx.saved_tensors]
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *cast_back, None, None, None, None, None


class _Rows:
    """One pass over the rows, tile by tile. Row N is padding: zeros, with no target and no weight."""

    def __init__(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        target: Tensor,
        negatives: Tensor,
        groups: Tensor | None,
        log_q: Tensor | None,
        settings: _Settings,
    ) -> None:
        dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
        self.w = w.detach().to(dtype)
        self.x = F.pad(x.detach().to(dtype), (0, 0, 0, 1))  # (N+1, D)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.log_q = None if log_q is None else log_q.detach().to(dtype)
        self.target, self.settings = target, settings
        self.vectors = self.w.index_select(0, target)  # (N, D)
        self.s = (self.x[:-1] * self.vectors).sum(1)
        if self.bias is not None:
            self.s += self.bias[target]
        self.lists = negatives if negatives.dim() == 2 else negatives[None]  # (G, K)
        if groups is None:
            groups = torch.arange(len(x)) if negatives.dim() == 2 else torch.zeros(len(x), dtype=torch.int64)
            groups = groups.to(x.device)
        self.groups = groups
        self.has_absent = bool((negatives < 0).any())

    def run(
        self, weights: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """Losses (N,), and gradients of sum(weights * losses) for x, w and bias, None where not needed."""
        padded = F.pad(self.s, (0, 1))
        losses, rate_of_target = torch.empty_like(padded), torch.empty_like(padded)
        grads = _Gradients(
            torch.empty_like(self.x) if needs[0] else None,
            torch.zeros_like(self.w, memory_format=torch.contiguous_format) if needs[1] else None,
            self.w.new_zeros(len(self.w)) if needs[2] else None,
        )
        weight = None if weights is None else F.pad(weights, (0, 1))
        target = F.pad(self.target, (0, 1), value=-2)
        for tile in plan_tiles(self.groups, self.lists.shape[1], self.x.shape[1], self.x.element_size()):
            self._tile(tile, padded, target, weight, losses, rate_of_target, grads)
        if weights is not None:
            self._add_targets(weights * rate_of_target[:-1], grads)
        return losses[:-1], (None if grads.x is None else grads.x[:-1], grads.w, grads.bias)

    def _tile(
        self,
        tile: Tile,
        s: Tensor,
        target: Tensor,
        weight: Tensor | None,
        losses: Tensor,
        rate_of_target: Tensor,
        grads: "_Gradients",
    ) -> None:
        """The losses of a tile's rows, and their negatives' part of the gradients."""
        lists, rows = tile.lists, tile.rows.flatten()
        ids = self.lists.index_select(0, lists)  # (g, K)
        known = ids.clamp(min=0).flatten()
        vectors = self.w.index_select(0, known).view(*ids.shape, self.w.shape[1])  # (g, K, D)
        x = self.x.index_select(0, rows).view(*tile.rows.shape, self.w.shape[1])  # (g, n, D)
        logits = torch.bmm(x, vectors.transpose(1, 2))  # (g, n, K)
        offsets = self._offsets(known)
        if offsets is not None:
            logits += offsets.view(len(lists), 1, ids.shape[1])
        wanted = target.index_select(0, rows).view(*tile.rows.shape, 1)
        is_out = ids[:, None] == wanted  # (g, n, K)
        if self.has_absent:
            is_out |= (ids < 0)[:, None]
        logits.masked_fill_(is_out, -torch.inf)
        num = is_out.shape[2] - is_out.sum(2).flatten()
        e = logits.flatten(0, 1)
        of_target = self._log_q_of(wanted.flatten())
        terms = row_terms(self.settings.kind, s.index_select(0, rows), e, num, of_target, self.settings.beta)
        losses[rows], rate_of_target[rows] = terms.losses, terms.of_target
        if weight is None:
            return
        rate = (terms.rate * weight.index_select(0, rows)).view(*tile.rows.shape, 1)
        if grads.x is not None:
            grads.x[rows] = torch.bmm(logits, vectors).mul_(rate).flatten(0, 1)
        if grads.w is not None:
            grads.w.index_add_(0, known, torch.bmm(logits.transpose(1, 2), x * rate).flatten(0, 1))
        if grads.bias is not None:
            grads.bias.index_add_(0, known, torch.bmm(logits.transpose(1, 2), rate).flatten())

    def _offsets(self, ids: Tensor) -> Tensor | None:
        """bias - log q of the negatives."""
        bias = None if self.bias is None else self.bias.index_select(0, ids)
        if self.log_q is None:
            return bias
        log_q = self.log_q.index_select(0, ids)
        return -log_q if bias is None else bias - log_q

    def _log_q_of(self, target: Tensor) -> Tensor | None:
        return None if self.log_q is None else self.log_q.index_select(0, target.clamp(min=0))

    def _add_targets(self, rate: Tensor, grads: "_Gradients") -> None:
        if grads.x is not None:
            grads.x[:-1] += self.vectors * rate[:, None]
        if grads.w is not None:
            grads.w.index_add_(0, self.target, self.x[:-1] * rate[:, None])
        if grads.bias is not None:
            grads.bias.index_add_(0, self.target, rate)


@dataclass(frozen=True)
class _Gradients:
    x: Tensor | None  # (N+1, D)
    w: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)

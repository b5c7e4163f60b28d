"""sampled_loss in plain torch: losses and gradients tile by tile, in one pass.

Dims: N rows, G lists of negatives, K negatives a list, V items, D width; of one tile: g lists, n rows of each.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.derivatives import first_only
from recsys.kernels.ordered_add import add_rows
from recsys.kernels.sampled_loss.settings import Settings
from recsys.kernels.sampled_loss.tiles import Tile, plan_tiles, row_terms


class SampledLoss(torch.autograd.Function):
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
        settings: Settings,
    ) -> Tensor:
        ctx.settings, ctx.grads, ctx.dtypes = settings, None, (x.dtype, w.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(x, w, bias, target, negatives, groups, log_q)
        rows = Rows(x, w, bias, target, negatives, groups, log_q, settings)
        if settings.reduction == "none":
            return rows.run(None, (False, False, False))[0]
        losses, ctx.grads = rows.run(rows.shares(), ctx.needs_input_grad[:3])
        return losses.sum() * settings.share(len(x))

    @staticmethod
    @first_only("sampled_loss")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # handed over as they were formed; who asks twice has them formed again
        if grads is None:
            x, w, bias, target, negatives, groups, log_q = ctx.saved_tensors
            rows = Rows(x, w, bias, target, negatives, groups, log_q, ctx.settings)
            weights = grad.to(rows.s.dtype) if ctx.settings.reduction == "none" else rows.shares() * grad
            grads = rows.run(weights, ctx.needs_input_grad[:3])[1]
        else:
            for each in grads:
                if each is not None:
                    each.mul_(grad)
        cast_back = [None if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        return *cast_back, None, None, None, None, None


class Rows:
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
        settings: Settings,
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

    def shares(self) -> Tensor:
        """(N,) what each row counts in the reduced loss."""
        return torch.full_like(self.s, self.settings.share(len(self.s)))

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
            add_rows(grads.w, known, torch.bmm(logits.transpose(1, 2), x * rate).flatten(0, 1))
        if grads.bias is not None:
            add_rows(grads.bias, known, torch.bmm(logits.transpose(1, 2), rate).flatten())

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
            add_rows(grads.w, self.target, self.x[:-1] * rate[:, None])
        if grads.bias is not None:
            add_rows(grads.bias, self.target, rate)


@dataclass(frozen=True)
class _Gradients:
    x: Tensor | None  # (N+1, D)
    w: Tensor | None  # (V, D)
    bias: Tensor | None  # (V,)

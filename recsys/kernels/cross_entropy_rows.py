"""The rows of a linear cross entropy, chunk by chunk through one buffer of logits: losses and gradients.

Dims: N rows, V items, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recsys.kernels.ordered_add import add_rows

Reduction = Literal["mean", "sum", "none"]
CACHE_BYTES = 16 << 20  # a buffer beyond this is slower: measured by benchmarks/linear_cross_entropy.py
LOG2_E = math.log2(math.e)  # powers of 2: exp is 100 times slower on the CPU where it underflows
EFFICIENT_ROWS = 64  # a chunk of fewer rows is slower, whatever the cache


@dataclass(frozen=True)
class Settings:
    """Arguments of linear_cross_entropy."""

    reduction: Reduction
    logit_scale: float
    label_smoothing: float
    logits_dtype: torch.dtype | None
    memory_budget_bytes: int


def rows_of(x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> "Rows":
    """One pass over the rows, with logits as the settings ask."""
    kind = Rows if settings.logits_dtype is None else NarrowRows
    return kind(x, w, bias, target, settings)


class Rows:
    """One pass over the rows, chunk by chunk, through one buffer of logits."""

    def __init__(self, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> None:
        dtype = torch.promote_types(torch.promote_types(x.dtype, w.dtype), torch.float32)
        self.x = x.detach().to(dtype) * settings.logit_scale
        self.w = w.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype) * settings.logit_scale
        self.target, self.settings = target, settings
        self._apart: Tensor | float = 0.0  # (N,), what `e` leaves out of the target's probability

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
        dtype = self.settings.logits_dtype or x.dtype
        size = _chunk_rows(len(x), len(w), dtype.itemsize, self.settings.memory_budget_bytes)
        buffer = x.new_empty((size, len(w)), dtype=dtype)
        for start in range(0, len(x), size):
            chunk = slice(start, min(start + size, len(x)))
            e, z = self._exponentials(chunk, buffer, losses)
            if weights is None:
                continue
            rate = weights[chunk, None] / z  # (rows, 1)
            if grad_x is not None:
                self._set_product(grad_x[chunk], e).mul_(rate)
            if grad_w is not None:
                self._add_product(grad_w, e, x[chunk] * rate)
            if grad_bias is not None:
                self._add_product(grad_bias, e, rate.squeeze(1))
        if weights is not None:
            self._subtract_targets(weights, grad_x, grad_w, grad_bias)
        return losses, (grad_x, grad_w, grad_bias)

    def _set_product(self, out: Tensor, e: Tensor) -> Tensor:
        """`out` = e w."""
        return torch.mm(e, self.w, out=out)

    def _add_product(self, grad: Tensor, e: Tensor, right: Tensor) -> None:
        """`grad` += e^T right, of a vector or a matrix."""
        if right.dim() == 1:
            grad.addmv_(e.t(), right)
        else:
            grad.addmm_(e.t(), right)

    def _new_grads(self, needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_x, needs_w, needs_bias = needs
        grad_x = torch.empty_like(self.x, memory_format=torch.contiguous_format) if needs_x else None
        grad_w = torch.zeros_like(self.w, memory_format=torch.contiguous_format) if needs_w else None
        return grad_x, grad_w, self.w.new_zeros(len(self.w)) if needs_bias else None

    def _exponentials(self, chunk: slice, buffer: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """exp(logits - max) (rows, V) in `buffer` and its sums (rows, 1); writes the chunk's losses."""
        x, target, smoothing = self.x[chunk], self.target[chunk], self.settings.label_smoothing
        logits = buffer[: len(x)]
        _logits(x, self.w, self.bias, logits)
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
        hit = weights * (1.0 - smoothing - self._apart)  # (N,)
        if grad_x is not None:
            grad_x.sub_(self.w.index_select(0, self.target).mul_(hit[:, None]))
            if smoothing > 0:
                grad_x.addr_(weights, self.w.mean(dim=0), alpha=-smoothing)
            grad_x.mul_(self.settings.logit_scale)
        if grad_w is not None:
            add_rows(grad_w, self.target, self.x * -hit[:, None])
            if smoothing > 0:
                grad_w.sub_(torch.mv(self.x.t(), weights), alpha=smoothing / num_items)
        if grad_bias is not None:
            add_rows(grad_bias, self.target, -hit)
            if smoothing > 0:
                grad_bias.sub_(weights.sum(), alpha=smoothing / num_items)
            grad_bias.mul_(self.settings.logit_scale)


class NarrowRows(Rows):
    """Logits to the base 2 and their powers in bfloat16, but for the target's, which stay out of the buffer."""

    def __init__(self, x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, settings: Settings) -> None:
        super().__init__(x, w, bias, target, settings)
        narrow = torch.bfloat16
        self._x2 = self.x * LOG2_E
        self._bias2 = None if self.bias is None else self.bias * LOG2_E
        self._x2_narrow, self._w_narrow = self._x2.to(narrow), self.w.to(narrow)
        self._bias2_narrow = None if self._bias2 is None else self._bias2.to(narrow)
        self._apart = torch.zeros_like(self.x[:, 0])

    def _exponentials(self, chunk: slice, buffer: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(self._apart, Tensor)
        target = self.target[chunk]
        logits = buffer[: len(target)]
        _logits(self._x2_narrow[chunk], self._w_narrow, self._bias2_narrow, logits)
        hit = self._target_logits(chunk)  # (rows, 1)
        highest = logits.amax(dim=1, keepdim=True)
        e = logits.sub_(highest).exp2_()
        e.scatter_(1, target[:, None], 0.0)
        of_target = torch.exp2(hit - highest)
        z = e.sum(dim=1, keepdim=True, dtype=hit.dtype) + of_target
        self._apart[chunk] = (of_target / z).squeeze(1)
        losses[chunk] = (highest + z.log2() - self._wanted(chunk, hit)).squeeze(1) / LOG2_E
        return e, z

    def _target_logits(self, chunk: slice) -> Tensor:
        target = self.target[chunk]
        hit = (self._x2[chunk] * self.w.index_select(0, target)).sum(1, keepdim=True)
        return hit if self._bias2 is None else hit + self._bias2.index_select(0, target)[:, None]

    def _wanted(self, chunk: slice, hit: Tensor) -> Tensor:
        smoothing = self.settings.label_smoothing
        if smoothing == 0:
            return hit
        mean = torch.mv(self._x2[chunk], self.w.mean(dim=0))[:, None]
        if self._bias2 is not None:
            mean = mean + self._bias2.mean()
        return (1.0 - smoothing) * hit + smoothing * mean

    def _set_product(self, out: Tensor, e: Tensor) -> Tensor:
        return out.copy_(torch.mm(e, self._w_narrow))

    def _add_product(self, grad: Tensor, e: Tensor, right: Tensor) -> None:
        grad.add_(torch.matmul(e.t(), right.to(e.dtype)))


def _logits(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)


def _chunk_rows(num_rows: int, num_items: int, element_bytes: int, budget_bytes: int) -> int:
    """Rows of a chunk: within the budget; small enough for the cache, yet enough for an efficient matrix product."""
    row_bytes = num_items * element_bytes
    allowed = max(1, budget_bytes // row_bytes)
    return max(1, min(num_rows, allowed, max(CACHE_BYTES // row_bytes, EFFICIENT_ROWS)))

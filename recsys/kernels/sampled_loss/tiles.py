"""Rows that share a list of negatives, laid side by side; and what one row's loss is.

A tile is some lists and equally many rows of each, so that one batched product gives all its logits. Lists are taken by
the number of their rows, and none in a tile has less than half the rows of its largest: little is padding.

Dims: N rows, K negatives a list, D width; of one tile: g lists, n rows of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.cross_entropy_rows import CACHE_BYTES, LOG2_E
from recsys.kernels.sampled_loss.settings import Kind


@dataclass(frozen=True)
class Tile:
    """lists: (g,) int64. rows: (g, n) int64, N where there is none."""

    lists: Tensor
    rows: Tensor


@dataclass(frozen=True)
class RowTerms:
    """losses: (r,). of_target: (r,) d loss / d s. rate: (r,), what the coefficients left in `a` are multiplied by."""

    losses: Tensor
    of_target: Tensor
    rate: Tensor


def plan_tiles(groups: Tensor, num_negatives: int, width: int, element_bytes: int) -> Iterator[Tile]:
    """Every row once; a tile's logits, vectors and their gradients stay within the cache.

    Args:
        groups: (N,) int64, the list of each row.
        num_negatives: K.
        width: D.
        element_bytes: of one number.
    """
    group = groups.numpy(force=True)
    order = np.argsort(group, kind="stable")
    lists, first, count = np.unique(group[order], return_index=True, return_counts=True)
    by_count = np.argsort(-count, kind="stable")
    lists, first, count = lists[by_count], first[by_count], count[by_count]
    cells = CACHE_BYTES // (max(num_negatives, 1) * element_bytes)  # rows of K numbers
    begin = 0
    while begin < len(lists):
        n = int(count[begin])
        if n + 2 * width > cells:
            yield from _pieces(int(lists[begin]), order[first[begin] : first[begin] + n], max(1, cells), groups.device)
            begin += 1
            continue
        fitting = int(np.searchsorted(-count, -(n / 2), side="right")) - begin
        end = begin + max(1, min(cells // (n + 2 * width), fitting))
        place = np.arange(n) + first[begin:end, None]  # (g, n)
        is_row = np.arange(n) < count[begin:end, None]
        rows = np.where(is_row, order[np.minimum(place, len(order) - 1)], len(order))
        yield Tile(_tensor(lists[begin:end], groups.device), _tensor(rows, groups.device))
        begin = end


def _pieces(number: int, rows: np.ndarray, size: int, device: torch.device) -> Iterator[Tile]:
    for start in range(0, len(rows), size):
        yield Tile(_tensor(np.array([number]), device), _tensor(rows[None, start : start + size], device))


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)


def row_terms(kind: Kind, s: Tensor, a: Tensor, num: Tensor, log_q: Tensor | None, beta: float) -> RowTerms:
    """Losses and derivatives of r rows; leaves in `a` the derivative by each negative's logit, but for `rate`.

    Args:
        kind: of the loss.
        s: (r,) logits of the targets.
        a: (r, K) logits of the negatives, less their log q; -inf where one does not count. Overwritten.
        num: (r,) int64, how many count.
        log_q: (r,) of the targets.
        beta: of gbce.
    """
    if kind == "softmax":
        return _softmax(s if log_q is None else s - log_q, a)
    if kind == "logq":
        assert log_q is not None
        return _corrected(s, a, num, log_q)
    return _binary(s, a, num, beta)


def _softmax(s: Tensor, a: Tensor) -> RowTerms:
    highest = torch.maximum(a.amax(1), s) if a.shape[1] else s
    sums = _exponentials(a, highest).sum(1)
    z = sums + torch.exp(s - highest)
    return RowTerms(highest + z.log() - s, -sums / z, 1.0 / z)


def _corrected(s: Tensor, a: Tensor, num: Tensor, log_q: Tensor) -> RowTerms:
    has_any = num > 0
    highest = a.amax(1).masked_fill(~has_any, 0.0) if a.shape[1] else torch.zeros_like(s)
    z = _exponentials(a, highest).sum(1).masked_fill(~has_any, 1.0)
    gap = highest + z.log() + torch.log1p(-log_q.exp()) - s
    rest = torch.sigmoid(gap - num.clamp(min=1).to(s.dtype).log()) * has_any  # 1 - p
    return RowTerms(rest * gap, -rest, rest / z)


def _binary(s: Tensor, a: Tensor, num: Tensor, beta: float) -> RowTerms:
    rate = 1.0 / (num + 1).to(s.dtype)
    negative = -F.logsigmoid(-a).sum(1)
    a.sigmoid_()
    return RowTerms((negative - beta * F.logsigmoid(s)) * rate, -beta * torch.sigmoid(-s) * rate, rate)


def _exponentials(a: Tensor, highest: Tensor) -> Tensor:
    return a.sub_(highest[:, None]).mul_(LOG2_E).exp2_()

"""Learned biases of a piece of scores, and the gradients of their tables.

A term is added to explicit scores and takes their gradient. Where a whole piece falls into one bucket, as most pieces
far from the diagonal do, it is one number a head. A position bias depends on the distance alone, so its (queries, keys)
block is a view of one row of distances, and its gradient the sums along the diagonals. No order of execution changes a
sum, so gradients are the same bit for bit.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.torch_path.bucket_lookup import BucketLookup
from recsys.kernels.attention.torch_path.tiles import Piece, Plan, Tile


class ScoreTerm(Protocol):
    """What is added to the scores of one piece."""

    def add_to(self, scores: Tensor, factor: float) -> None:
        """Add the term times `factor` to (n, H, queries, keys), in place."""

    def add_gradient(self, grad_scores: Tensor) -> None:
        """Take the gradient of (n, H, queries, keys) scores."""


@dataclass(frozen=True)
class ScoreTables:
    """The tables of one call, with what stands in the slots of its plan.

    Attributes:
        grads: (H or 1, NB) float64 of the time and of the position table, the sums so far.
    """

    time: TimeBias | None
    pos: PosBias | None
    causal: bool
    lookup: BucketLookup | None
    ts: tuple[Tensor, Tensor] | None  # of the query and of the key slots
    grads: tuple[Tensor | None, Tensor | None]

    @classmethod
    def of(cls, plan: Plan, time: TimeBias | None, pos: PosBias | None, causal: bool) -> "ScoreTables":
        """The tables, with gradients of 0."""
        zeros = [None if x is None else torch.zeros_like(x.table, dtype=torch.float64) for x in (time, pos)]
        if time is None:
            return cls(None, pos, causal, None, None, (None, zeros[1]))
        lookup = BucketLookup.of(time.thresholds(), (time.ts_q, time.ts_k))
        ts = plan.queries.gather(time.ts_q), plan.keys.gather(time.ts_k)
        return cls(time, pos, causal, lookup, ts, (zeros[0], zeros[1]))

    def cleared(self) -> "ScoreTables":
        """The same, with gradients of 0."""
        time, pos = (None if x is None else torch.zeros_like(x) for x in self.grads)
        return replace(self, grads=(time, pos))

    def terms(self, tile: Tile, piece: Piece) -> list[ScoreTerm]:
        """What is added to the scores of a piece."""
        found: list[ScoreTerm] = []
        if self.time is not None and self.lookup is not None and self.ts is not None:
            ts_q = self.ts[0][tile.slots_q].view(tile.n, tile.len_q)[piece.items, piece.queries]
            ts_k = self.ts[1][tile.slots_k].view(tile.n, tile.len_k)[piece.items, piece.keys]
            only = self.lookup.only_bucket(ts_q, ts_k)
            if only is not None:
                found.append(_OneBucket(self.time.table, self.grads[0], only))
            else:
                found.append(_Looked(self.time.table, self.grads[0], self.lookup.find(ts_q, ts_k)))
        if self.pos is not None:
            buckets = self.pos.buckets(_distances(tile, piece), self.causal)
            low, high = (int(x) for x in torch.aminmax(buckets))
            if low == high:
                found.append(_OneBucket(self.pos.table, self.grads[1], low))
            else:
                found.append(_ByDistance(self.pos.table, self.grads[1], buckets))
        return found


@dataclass(frozen=True)
class _OneBucket:
    table: Tensor
    grad: Tensor | None
    bucket: int

    def add_to(self, scores: Tensor, factor: float) -> None:
        scores.add_((self.table[:, self.bucket].to(scores.dtype) * factor)[:, None, None])

    def add_gradient(self, grad_scores: Tensor) -> None:
        assert self.grad is not None
        self.grad[:, self.bucket].add_(_by_head(grad_scores.sum((2, 3)), self.grad).sum(0))


@dataclass(frozen=True)
class _Looked:
    table: Tensor
    grad: Tensor | None
    buckets: Tensor  # (n, queries, keys) int64

    def add_to(self, scores: Tensor, factor: float) -> None:
        table = self.table.to(scores.dtype) * factor
        values = table.index_select(1, self.buckets.flatten())
        scores.add_(values.view(-1, *self.buckets.shape).transpose(0, 1))

    def add_gradient(self, grad_scores: Tensor) -> None:
        """A sum for each row of queries first: short sums in float32, and rows may run side by side."""
        assert self.grad is not None
        grad_scores = _by_head(grad_scores, self.grad)
        sums = _sums(self.buckets[:, None].expand_as(grad_scores), grad_scores, self.grad.shape[1])
        self.grad.add_(sums.sum(dim=(0, 2), dtype=torch.float64))


@dataclass(frozen=True)
class _ByDistance:
    table: Tensor
    grad: Tensor | None
    buckets: Tensor  # (n or 1, queries + keys - 1) int64, from the first key behind the last query

    def add_to(self, scores: Tensor, factor: float) -> None:
        num_queries, num_keys = scores.shape[2:]
        width = num_queries + num_keys - 1
        row = (self.table.to(scores.dtype) * factor)[:, self.buckets].transpose(0, 1)  # (n or 1, H or 1, width)
        rows = row[:, :, None].expand(-1, -1, num_queries, -1).contiguous()
        scores.add_(_diagonals(rows, num_queries, num_keys, width))

    def add_gradient(self, grad_scores: Tensor) -> None:
        assert self.grad is not None
        grad_scores = _by_head(grad_scores, self.grad)
        n, heads, num_queries, num_keys = grad_scores.shape
        width = num_queries + num_keys - 1
        rows = grad_scores.new_zeros(n, heads, num_queries, width)
        _diagonals(rows, num_queries, num_keys, width).copy_(grad_scores)
        by_distance = rows.sum(2)  # (n, H or 1, width)
        by_distance = by_distance.sum(0, keepdim=True) if len(self.buckets) == 1 else by_distance
        buckets = self.buckets[:, None].expand_as(by_distance)
        self.grad.add_(_sums(buckets, by_distance.double(), self.grad.shape[1]).sum(0))


def _distances(tile: Tile, piece: Piece) -> Tensor:
    """(n or 1, queries + keys - 1) of the last query from each key, then of the queries before it from the last key.

    Column m holds the distance of all pairs with m = key - query + queries - 1, counted in the piece.
    """
    first = tile.distance[piece.items] if len(tile.distance) > 1 else tile.distance
    num_queries, num_keys = piece.queries.stop - piece.queries.start, piece.keys.stop - piece.keys.start
    last_query = first + piece.queries.stop - 1 - piece.keys.start  # (n or 1,)
    return last_query[:, None] - torch.arange(num_queries + num_keys - 1, device=first.device)


def _diagonals(rows: Tensor, num_queries: int, num_keys: int, width: int) -> Tensor:
    """(n, H, queries, keys) view of (n, H, queries, width): in each row the keys begin one column further left."""
    strides = rows.stride()
    return rows.as_strided((*rows.shape[:2], num_queries, num_keys), (*strides[:2], width - 1, 1), num_queries - 1)


def _by_head(grad: Tensor, table: Tensor) -> Tensor:
    """(n, H or 1, ...) of (n, H, ...): summed over the heads that share the table."""
    return grad if table.shape[0] == grad.shape[1] else grad.sum(1, keepdim=True)


def _sums(buckets: Tensor, values: Tensor, num_buckets: int) -> Tensor:
    """(..., num_buckets) sums over the last axis of `values`, in the order of that axis."""
    if values.device.type == "cpu":
        return values.new_zeros(*values.shape[:-1], num_buckets).scatter_add_(-1, buckets, values)
    return torch.stack([torch.where(buckets == b, values, 0.0).sum(-1) for b in range(num_buckets)], dim=-1)

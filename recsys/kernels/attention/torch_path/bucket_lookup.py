"""The bucket of a time gap without a search: the exponent and first bits of its float32 name a cell, the cell a bucket.

A cell holds one threshold at most, so one comparison decides between the bucket before and behind it. Buckets are those
of `TimeBias`, exactly: rounding to float32 keeps the order, and the comparison is between integers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MANTISSA_BITS = 23
CELL_BITS = range(2, 9)  # bits of the mantissa that a cell may keep
LARGEST_GAP = 2**32
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class BucketLookup:
    """Buckets of gaps between integer times.

    Attributes:
        thresholds: (NB-1,) int64 on the host, ascending.
        shift: bits of a float32 that do not tell cells apart; None where the thresholds lie too close.
        first_cell: number of the cell before that of a gap of 1.
        limits: (cells,) the threshold in each cell.
        buckets: (2 * cells,) int64: of gaps below and from the threshold of each cell.
    """

    thresholds: np.ndarray
    shift: int | None
    first_cell: int
    limits: Tensor
    buckets: Tensor

    @classmethod
    def of(cls, thresholds: Tensor, times: tuple[Tensor, Tensor]) -> "BucketLookup":
        """The lookup for gaps between these int32 times; thresholds (NB-1,) int64."""
        dtype = torch.int32 if _span(times) < INT32_MAX else torch.int64
        if dtype == torch.int32:
            thresholds = thresholds.clamp(max=INT32_MAX)  # behind every gap
        host, device = thresholds.cpu().numpy(), thresholds.device
        for bits in CELL_BITS:
            shift = MANTISSA_BITS - bits
            first_cell = int(_cell(np.ones(1, dtype=np.int64), shift)[0]) - 1
            found = _cells(host, shift, first_cell)
            if found is not None:
                limits, buckets = (torch.from_numpy(x).to(device) for x in found)
                return cls(host, shift, first_cell, limits.to(dtype), buckets)
        return cls(host, None, 0, torch.zeros(0, dtype=dtype, device=device), thresholds)

    def gaps(self, ts_q: Tensor, ts_k: Tensor) -> Tensor:
        """(n, queries, keys) of int32 times (n, queries) and (n, keys)."""
        dtype = self.limits.dtype
        return (ts_q.to(dtype)[:, :, None] - ts_k.to(dtype)[:, None, :]).abs_()

    def find(self, ts_q: Tensor, ts_k: Tensor) -> Tensor:
        """(n, queries, keys) int64 buckets."""
        gaps = self.gaps(ts_q, ts_k)
        if self.shift is None:
            return torch.bucketize(gaps, self.buckets.to(gaps.dtype), right=True)
        cells = (gaps.float().view(torch.int32) >> self.shift).sub_(self.first_cell).clamp_(min=0)
        is_above = self.limits.index_select(0, cells.flatten()).le_(gaps.flatten())  # 0 or 1
        return self.buckets.index_select(0, cells.flatten().mul_(2).add_(is_above)).view(gaps.shape)

    def only_bucket(self, ts_q: Tensor, ts_k: Tensor) -> int | None:
        """The bucket that all gaps fall into, if they must; None if they may differ."""
        (low_q, high_q), (low_k, high_k) = ((int(x) for x in torch.aminmax(ts)) for ts in (ts_q, ts_k))
        nearest, farthest = max(0, low_q - high_k, low_k - high_q), max(high_q - low_k, high_k - low_q)
        low, high = np.searchsorted(self.thresholds, [nearest, farthest], side="right")
        return int(low) if low == high else None


def _span(times: tuple[Tensor, Tensor]) -> int:
    bounds = [(int(low), int(high)) for low, high in (torch.aminmax(ts) for ts in times if ts.numel())]
    return max((high for _, high in bounds), default=0) - min((low for low, _ in bounds), default=0)


def _cell(gaps: np.ndarray, shift: int) -> np.ndarray:
    return gaps.astype(np.float32).view(np.int32).astype(np.int64) >> shift


def _cells(thresholds: np.ndarray, shift: int, first_cell: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Threshold (cells,) and buckets (2 * cells,) of all cells; None if two thresholds share a cell."""
    num_cells = int(_cell(np.array([LARGEST_GAP]), shift)[0]) - first_cell + 1
    reachable = np.clip(thresholds, 0, LARGEST_GAP + 1)
    cells = np.where(reachable > LARGEST_GAP, num_cells, np.maximum(_cell(reachable, shift) - first_cell, 0))
    distinct, first = np.unique(reachable, return_index=True)
    inner = cells[first] < num_cells
    if len(np.unique(cells[first][inner])) < np.count_nonzero(inner):
        return None
    limits = np.zeros(num_cells, dtype=np.int64)
    limits[cells[first][inner]] = distinct[inner]
    ends = np.arange(num_cells)
    below, above = np.searchsorted(cells, ends, side="left"), np.searchsorted(cells, ends, side="right")
    return limits, np.stack([below, above], axis=1).ravel()

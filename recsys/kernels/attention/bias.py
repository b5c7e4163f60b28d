"""Biases of the attention scores that are looked up in small tables: by time difference and by distance.

    score[i, j] = scale * <q_i, k_j> + time.table[h, bucket(|t_i - t_j|)] + pos.table[h, bucket(i - j)]

Buckets are counts of integer thresholds at or below the value, so every device finds the same bucket.

Paper: Zhai et al. 2024, arXiv:2402.17152 (time and position buckets); Raffel et al. 2020, arXiv:1910.10683 (`t5`).
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

LOG2_STEPS = {"log2x1": 1, "log2x2": 2, "log2x4": 4}  # buckets a doubling
HSTU_LOG_BASE = 0.301  # a bucket ends where ln(seconds) grows by this
LARGEST = 2**62


@dataclass(frozen=True, eq=False, kw_only=True)
class TimeBias:
    """A learned bias for the time between query and key.

    Attributes:
        table: (H or 1, NB) float, a row for each head or one for all.
        ts_q: (Tq,) int32 seconds since the start of the query's sequence.
        ts_k: (Tk,) int32 seconds, from the same start.
        buckets: `log2x1`, `log2x2`, `log2x4` (that many buckets a doubling), `hstu`, or ascending thresholds
            (NB-1,) integers: the bucket is how many of them are <= |ts_q - ts_k|.
    """

    table: Tensor
    ts_q: Tensor
    ts_k: Tensor
    buckets: str | Tensor = "log2x2"

    def thresholds(self) -> Tensor:
        """(NB-1,) int64 on the table's device."""
        if isinstance(self.buckets, Tensor):
            return self.buckets.to(device=self.table.device, dtype=torch.int64)
        return _thresholds_on(self.table.device, self.buckets, self.table.shape[1])

    def scores(self, rows_q: slice, rows_k: slice) -> Tensor:
        """(H or 1, Lq, Lk) bias of the queries `rows_q` against the keys `rows_k`."""
        gap = (self.ts_q[rows_q, None].long() - self.ts_k[None, rows_k].long()).abs()
        return self.table[:, torch.bucketize(gap, self.thresholds(), right=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class PosBias:
    """A learned bias for the distance between query and key.

    Attributes:
        table: (H or 1, NB) float.
        kind: `toeplitz`: NB = 2P-1 and the bucket is the distance clipped to (-P, P); `t5`: one bucket for each small
            distance, then log-spaced ones up to `max_distance`. Unless causal, half of the t5 buckets are for keys
            that come after the query.
        max_distance: of `t5`: distances from here on share the last bucket.
    """

    table: Tensor
    kind: str = "toeplitz"
    max_distance: int = 128

    def scores(self, positions_q: Tensor, positions_k: Tensor, causal: bool) -> Tensor:
        """(H or 1, Lq, Lk) bias of the queries at (Lq,) against the keys at (Lk,)."""
        return self.table[:, self.buckets(positions_q[:, None] - positions_k[None, :], causal)]

    def buckets(self, distance: Tensor, causal: bool) -> Tensor:
        """int64 bucket of each distance, any shape; > 0: the key comes first."""
        if self.kind == "toeplitz":
            reach = self.table.shape[1] // 2
            return distance.clamp(-reach, reach) + reach
        return self._t5_bucket(distance, causal)

    def _t5_bucket(self, distance: Tensor, causal: bool) -> Tensor:
        num_buckets = self.table.shape[1]
        one_sided = num_buckets if causal else num_buckets // 2
        thresholds = _t5_thresholds_on(distance.device, one_sided, self.max_distance)
        if causal:
            return torch.bucketize(distance.clamp(min=0), thresholds, right=True)
        bucket = torch.bucketize(distance.abs(), thresholds, right=True)
        return bucket + (distance < 0) * one_sided


@cache
def _thresholds_on(device: torch.device, buckets: str, num_buckets: int) -> Tensor:
    """Copied to the device once: a copy for each call would wait for it."""
    return torch.tensor(time_thresholds(buckets, num_buckets), dtype=torch.int64, device=device)


@cache
def _t5_thresholds_on(device: torch.device, num_buckets: int, max_distance: int) -> Tensor:
    return torch.tensor(t5_thresholds(num_buckets, max_distance), device=device)


def time_thresholds(buckets: str, num_buckets: int) -> list[int]:
    """num_buckets - 1 ascending seconds: bucket b begins at the (b-1)-th.

    Raises:
        ValueError: `buckets` names no known rule.
    """
    if buckets == "hstu":
        return [_ceil_exp(HSTU_LOG_BASE * b) for b in range(1, num_buckets)]
    if buckets not in LOG2_STEPS:
        raise ValueError(
            f"time_bias.buckets={buckets!r}; wanted {', '.join(LOG2_STEPS)}, hstu, or a tensor of thresholds"
        )
    steps = LOG2_STEPS[buckets]
    return [min(_ceil_root(1 << b, steps), LARGEST) for b in range(1, num_buckets)]


def t5_thresholds(num_buckets: int, max_distance: int) -> list[int]:
    """num_buckets - 1 ascending distances: one a step in the lower half, log-spaced to `max_distance` in the upper."""
    exact = max(num_buckets // 2, 1)
    spread = num_buckets - exact
    ratio = max_distance / exact
    far = [math.ceil(exact * ratio ** (i / spread) - 1e-9) for i in range(1, spread)]
    return [*range(1, exact + 1), *far][: num_buckets - 1]


def _ceil_exp(exponent: float) -> int:
    return min(math.ceil(math.exp(min(exponent, 700.0))), LARGEST)


def _ceil_root(value: int, degree: int) -> int:
    """The smallest integer whose `degree`-th power is at least `value`; exact."""
    root = value
    for _ in range(degree.bit_length() - 1):  # degree is 1, 2 or 4
        root = math.isqrt(root - 1) + 1
    return root

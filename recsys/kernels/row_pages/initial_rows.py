"""Vectors of new rows: a function of seed and id alone, so that they depend on no order, device or number of shards.

    h(d) = mixed(mixed(id ^ mixed(seed)) + d)      64 bits
    w(d) = scale / SPREAD * (sum of h(d)'s four 16-bit numbers - their mean)

The sum is of four uniform numbers: mean 0, deviation `scale`, nearly normal, never beyond 3.5 deviations. It is a whole
number until the last product, so that every path has the same bits.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Bits = np.ndarray[Any, np.dtype[np.uint64]]

SPREAD = 65_536 / 3**0.5  # deviation of the sum of four uniform 16-bit numbers
MEAN = 4 * 65_535 / 2
_GOLDEN, _FIRST, _SECOND = (np.uint64(v) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def drawn(ids: Tensor, width: int, seed: int, scale: float) -> Tensor:
    """(N, width) float32 of ids (N,) int64."""
    with np.errstate(over="ignore"):
        keys = mixed(np.bitwise_xor(ids.cpu().numpy().astype(np.uint64), mixed(np.full(1, seed, dtype=np.uint64))))
        bits = mixed(np.add.outer(keys, np.arange(width, dtype=np.uint64)))
    total = sum((bits >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    centred = np.asarray(total).astype(np.float32) - np.float32(MEAN)
    return torch.from_numpy(centred * np.float32(scale / SPREAD)).to(ids.device)


def mixed(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
    """64 bits in which those of each number are mixed: the finaliser of splitmix64."""
    with np.errstate(over="ignore"):
        h = values + _GOLDEN
        h = (h ^ (h >> np.uint64(30))) * _FIRST
        h = (h ^ (h >> np.uint64(27))) * _SECOND
        return h ^ (h >> np.uint64(31))

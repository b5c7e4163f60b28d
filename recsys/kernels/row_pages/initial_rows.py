"""Vectors of new rows: a function of seed and id alone, so that they depend on no order, device or number of shards.

    h(d) = mixed(mixed(id ^ mixed(seed)) + d)      64 bits
    w(d) = scale / SPREAD * (sum of h(d)'s four 16-bit numbers - their mean)

The sum is of four uniform numbers: mean 0, deviation `scale`, nearly normal, never beyond 3.5 deviations. It is a whole
number until the last product, so that every path has the same bits.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.mixing import mixed, signed

SPREAD = 65_536 / 3**0.5  # deviation of the sum of four uniform 16-bit numbers
MEAN = 4 * 65_535 / 2


def drawn(ids: Tensor, width: int, seed: int, scale: float) -> Tensor:
    """(N, width) float32 of ids (N,) int64, on their device."""
    keys = mixed(ids ^ mixed_seed(seed))
    bits = mixed(keys[:, None] + torch.arange(width, device=ids.device))
    total = sum((bits >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
    assert isinstance(total, Tensor)
    return (total.float() - MEAN) * float(np.float32(scale / SPREAD))


def mixed_seed(seed: int) -> int:
    """What ids are combined with, as an int64; `seed` in [0, 2^64)."""
    return int(mixed(torch.tensor(signed(seed))))

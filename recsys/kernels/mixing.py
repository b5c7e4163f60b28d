"""64-bit numbers in which the bits of an id are mixed, one to one: the finaliser of SplitMix64.

    h = id + g;  h ^= h >> 30;  h *= a;  h ^= h >> 27;  h *= b;  h ^= h >> 31      in unsigned numbers of 64 bits

Kernels have it once more in their own files, since a compiler looks at one file alone.

Paper: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; the constants are Stafford's mix 13.
"""

from typing import Any

import numpy as np
from torch import Tensor

Bits = np.ndarray[Any, np.dtype[np.uint64]]

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(ids: Tensor) -> Tensor:
    """Int64 of the shape of `ids` (int64), another number for each id, and no two the same."""
    h = ids + signed(GOLDEN)
    h = (h ^ shifted(h, 30)) * signed(FIRST)
    h = (h ^ shifted(h, 27)) * signed(SECOND)
    return h ^ shifted(h, 31)


def unmixed(mixed_ids: Tensor) -> Tensor:
    """The ids of which `mixed` made these."""
    h = (mixed_ids ^ shifted(mixed_ids, 31) ^ shifted(mixed_ids, 62)) * signed(pow(SECOND, -1, 2**64))
    h = (h ^ shifted(h, 27) ^ shifted(h, 54)) * signed(pow(FIRST, -1, 2**64))
    return (h ^ shifted(h, 30) ^ shifted(h, 60)) - signed(GOLDEN)


def mixed_bits(values: Bits) -> Bits:
    """The same of unsigned numbers in numpy."""
    with np.errstate(over="ignore"):
        h = values + np.uint64(GOLDEN)
        h = (h ^ (h >> np.uint64(30))) * np.uint64(FIRST)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(SECOND)
        return h ^ (h >> np.uint64(31))


def shifted(h: Tensor, bits: int) -> Tensor:
    """To the right, filled with zeros, as unsigned numbers are; torch has no shifts of these."""
    return (h >> bits) & ((1 << (64 - bits)) - 1)


def signed(word: int) -> int:
    """The int64 whose bits are those of an unsigned number."""
    return word - (1 << 64) if word >> 63 else word

"""The r-th smallest of very many integers that lie in several arrays, without sorting them."""

from collections.abc import Sequence

import numpy as np

from recsys.features.slices import Int64s

NUM_BINS_BITS = 16
FEW = 1_000_000


def order_statistic(arrays: Sequence[Int64s], rank: int) -> int:
    """The value that stands at `rank` (from 0) when all values of all arrays are in ascending order.

    Args:
        arrays: any number of int64 arrays; memory-mapped ones are read a few times, never copied whole.
        rank: 0 to the number of values - 1.

    Raises:
        ValueError: no such rank.
    """
    filled = [array for array in arrays if len(array)]
    total = sum(len(array) for array in filled)
    if not 0 <= rank < total:
        raise ValueError(f"rank={rank}: wanted 0 to {total - 1}")
    low, high = min(int(array.min()) for array in filled), max(int(array.max()) for array in filled)
    while total > FEW and low < high:
        shift = max(0, (high - low).bit_length() - NUM_BINS_BITS)
        counts = sum((_histogram(array, low, high, shift) for array in filled), np.zeros(1, np.int64))
        chosen = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
        rank -= int(counts[:chosen].sum())
        total = int(counts[chosen])
        low, high = low + (chosen << shift), min(high, low + ((chosen + 1) << shift) - 1)
    if low == high:
        return low
    left = np.concatenate([_between(array, low, high) for array in filled])
    return int(np.partition(left, rank)[rank])


def _between(array: Int64s, low: int, high: int) -> Int64s:
    found: Int64s = array[(array >= low) & (array <= high)]
    return found


def _histogram(array: Int64s, low: int, high: int, shift: int) -> Int64s:
    return np.bincount((_between(array, low, high) - low) >> shift, minlength=((high - low) >> shift) + 1)

"""Which runs of queries and keys share a padded tile: the cheapest partition of their sizes, by dynamic programming.

Starting a tile has a fixed cost, and each padded row and score cell has its own; few large tiles beat many tiny ones
until the padding eats the gain. The constants are measured (benchmarks/attention.py), in units of one short row.
"""

import numpy as np

TILE_COST = 150.0  # of starting a tile
CELL_COST = 1 / 128  # of a score, where a row costs 1
LOOKBACK = 256  # distinct sizes that one tile may span


def cheapest_groups(len_q: np.ndarray, len_k: np.ndarray) -> list[np.ndarray]:
    """Positions of the runs in each group, ascending in size; every run is in exactly one.

    Args:
        len_q: (n,) int64 > 0, queries of each run.
        len_k: (n,) int64 > 0, keys of each run.
    """
    if len(len_q) == 0:
        return []
    order = np.lexsort((len_q, len_k))
    sizes_q, sizes_k = len_q[order], len_k[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (sizes_q[1:] != sizes_q[:-1]) | (sizes_k[1:] != sizes_k[:-1])
    firsts = np.flatnonzero(is_first)  # of each distinct size
    bounds = np.append(firsts, len(order))
    cuts = _cuts(sizes_q[firsts], sizes_k[firsts], bounds)
    return [np.sort(order[bounds[a] : bounds[b]]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def _cuts(sizes_q: np.ndarray, sizes_k: np.ndarray, bounds: np.ndarray) -> list[int]:
    """Where the cheapest partition of the distinct sizes is cut, both ends included."""
    num_sizes = len(sizes_q)
    best, came_from = np.zeros(num_sizes + 1), np.zeros(num_sizes + 1, dtype=np.int64)
    for last in range(num_sizes):  # the group [first, last] is padded to its largest size
        low = max(0, last + 1 - LOOKBACK)
        widest_q = np.maximum.accumulate(sizes_q[low : last + 1][::-1])[::-1]
        count = bounds[last + 1] - bounds[low : last + 1]
        cost = best[low : last + 1] + TILE_COST + count * widest_q * (1 + CELL_COST * sizes_k[last])
        first = int(np.argmin(cost))
        best[last + 1], came_from[last + 1] = cost[first], low + first
    cuts = [num_sizes]
    while cuts[-1] > 0:
        cuts.append(int(came_from[cuts[-1]]))
    return cuts[::-1]

"""HR, NDCG, MRR, Recall and MAP at k for each query, from expected ranks.

    expected rank = 1 + (candidates with a greater score) + (candidates with an equal score, the target left out) / 2

A rank may be fractional and `inf` (the target can not be reached: a miss). With one target NDCG@k = 1 / log2(1 + rank)
if rank <= k. With several, HR@k is 1 if any target is within k, NDCG@k divides the DCG by that of a list that has
min(k, targets) targets on top, MRR@k looks at the first target, Recall@k is the share of the targets within k, and

    MAP@k = sum over targets within k of (their expected place among the targets) / rank, over min(k, targets)

Formulas, bounds and where other libraries differ: docs/evaluation.md.

Dims: N queries; R ranks, one for each target of each query, flat.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

METRICS = ("hr", "ndcg", "mrr", "recall", "map")


def metrics_per_query(
    ranks: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64], ks: Sequence[int] = (5, 10, 20)
) -> dict[str, npt.NDArray[np.float64]]:
    """Each metric of each query: `{"hr@5": (N,), "ndcg@5": (N,), ...}`, in the order of `ks`.

    Args:
        ranks: (R,) float64, expected ranks from 1 on, `inf` for a target out of reach.
        offsets: (N+1,) int64; the targets of query n are ranks[offsets[n]:offsets[n+1]], at least one.
        ks: list lengths, each at least 1.

    Raises:
        ValueError: a query without a target, a rank below 1 or NaN, a k below 1, or offsets that do not fit ranks.
    """
    _check(ranks, offsets, ks)
    if len(offsets) == 1:
        return {f"{name}@{k}": np.empty(0) for k in ks for name in METRICS}
    first = np.minimum.reduceat(ranks, offsets[:-1])  # (N,)
    targets = np.diff(offsets)
    precision = _places(ranks, offsets) / ranks  # 0 where the rank is inf
    result: dict[str, npt.NDArray[np.float64]] = {}
    for k in ks:
        hit = first <= k
        result[f"hr@{k}"] = hit.astype(np.float64)
        result[f"ndcg@{k}"] = _dcg(ranks, offsets, k) / _ideal_dcg(k)[np.minimum(targets, k)]
        result[f"mrr@{k}"] = np.where(hit, 1.0 / first, 0.0)
        within = ranks <= k
        result[f"recall@{k}"] = np.add.reduceat(within.astype(np.float64), offsets[:-1]) / targets
        result[f"map@{k}"] = np.add.reduceat(np.where(within, precision, 0.0), offsets[:-1]) / np.minimum(targets, k)
    return result


def _places(ranks: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each target's expected place among the targets of its query: 1 + better ones + half of the equal others."""
    query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((ranks, query))
    query, sorted_ranks = query[order], ranks[order]
    is_new = np.ones(len(ranks), dtype=bool)
    is_new[1:] = (query[1:] != query[:-1]) | (sorted_ranks[1:] != sorted_ranks[:-1])
    starts = np.flatnonzero(is_new)  # of runs of equal ranks
    ends = np.append(starts[1:], len(ranks))
    middle = (starts + ends - 1) / 2.0 + 1.0 - offsets[query[starts]]
    places = np.empty(len(ranks))
    places[order] = np.repeat(middle, ends - starts)
    return places


def _dcg(ranks: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    return np.asarray(np.add.reduceat(gains, offsets[:-1]))


def _ideal_dcg(k: int) -> npt.NDArray[np.float64]:
    """(k+1,): entry m is the DCG of m targets on top."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])


def _check(ranks: npt.NDArray[np.float64], offsets: npt.NDArray[np.int64], ks: Sequence[int]) -> None:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ranks):
        raise ValueError(
            f"offsets must run from 0 to the {len(ranks)} ranks, got {np.asarray(offsets).tolist()[:3]}..."
        )
    if np.any(np.diff(offsets) < 1):
        raise ValueError(f"query {int(np.argmin(np.diff(offsets)))} has no target; leave such queries out")
    if not np.all(ranks >= 1):
        raise ValueError("ranks must be at least 1 (inf where out of reach); NaN and smaller values are no ranks")
    for k in ks:
        if k < 1:
            raise ValueError(f"ks={tuple(ks)}: each k must be at least 1")

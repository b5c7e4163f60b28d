"""Distributions in a few numbers: percentiles, log bins, concentration."""

from typing import Any

import numpy as np

from recsys.features.slices import Int64s

LORENZ_POINTS = 101


def lengths_shape(lengths: Int64s) -> dict[str, Any]:
    """How many events users have: mean, percentiles, `histogram` in log bins, users with few events."""
    return _percentiles(lengths) | {
        "histogram": log_bins(lengths, "users"),
        "users_below_3": int(np.count_nonzero(lengths < 3)),
        "users_below_5": int(np.count_nonzero(lengths < 5)),
    }


def popularity_shape(counts: Int64s) -> dict[str, Any]:
    """How events spread over items.

    Args:
        counts: (V,) int64, events of each item, at least 1.

    Returns:
        Mean and percentiles, `histogram` in log bins, `top_1_percent_share` (share of events of the most popular 1 % of
        items, rounded up), `gini` (0: all alike, near 1: one item has all), `items_below_5`, `ranks` (events of the
        item at some ranks, for a picture), `lorenz` (share of events of the least popular 0, 1, … 100 % of items).
    """
    ascending = np.sort(counts)
    total, size = int(counts.sum()), len(counts)
    if not size:
        concentration = {"top_1_percent_share": 0.0, "gini": 0.0, "ranks": [], "lorenz": [0.0] * LORENZ_POINTS}
        return _percentiles(counts) | {"histogram": [], "items_below_5": 0} | concentration
    running = np.concatenate([[0], np.cumsum(ascending)])
    top = -(-size // 100)
    ranks = np.unique(np.geomspace(1, size, 60).astype(np.int64))
    return _percentiles(counts) | {
        "histogram": log_bins(counts, "items"),
        "items_below_5": int(np.count_nonzero(counts < 5)),
        "top_1_percent_share": round(float(ascending[-top:].sum() / total), 6),
        "gini": round(gini(ascending), 6),
        "ranks": [[int(rank), int(ascending[size - rank])] for rank in ranks],
        "lorenz": np.round(running[np.linspace(0, size, LORENZ_POINTS).astype(np.int64)] / total, 6).tolist(),
    }


def gini(ascending: Int64s) -> float:
    """The Gini coefficient of counts in ascending order, 0 for none."""
    size, total = len(ascending), float(ascending.sum())
    if not total:
        return 0.0
    weights = 2.0 * np.arange(1, size + 1) - size - 1
    return float((weights * ascending).sum() / (size * total))


def log_bins(values: Int64s, what: str) -> list[dict[str, int]]:
    """How many values lie in 1, 2-3, 4-7, 8-15, …: [{"from", "to", what}], from the first bin to the last with one."""
    if not len(values):
        return []
    bins = np.bincount(np.log2(np.maximum(values, 1)).astype(np.int64))
    return [{"from": 2**n, "to": 2 ** (n + 1) - 1, what: int(count)} for n, count in enumerate(bins)]


def _percentiles(values: Int64s) -> dict[str, Any]:
    if not len(values):
        return {"mean": 0.0, "median": 0, "p90": 0, "p99": 0, "max": 0}
    median, p90, p99 = np.percentile(values, [50, 90, 99], method="lower").tolist()
    return {
        "mean": round(float(values.mean()), 3),
        "median": int(median),
        "p90": int(p90),
        "p99": int(p99),
        "max": int(values.max()),
    }

"""Alternatives timed in turn within one loop, so that a slow minute slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def in_turn(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, after one round that warms up: 10th percentile, median, 99th.

    Args:
        repeats: rounds that count, at least 1.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
    return {name: _summary(values[1:]) for name, values in times.items()}


def _summary(times: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(times, [10, 99])
    return {"p10": round(float(low), 2), "median": round(statistics.median(times), 2), "p99": round(float(high), 2)}

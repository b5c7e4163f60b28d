"""Alternatives timed in turn within one loop, so that a slow minute slows them all."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LEAST_ROUNDS = 5  # whatever the time
LINE_EVERY_S = 10.0


def in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int, limit_s: float = math.inf
) -> dict[str, dict[str, float]]:
    """Milliseconds of each, after one round that warms up: 10th percentile, median, 99th, and how many rounds count.

    Args:
        repeats: rounds that count, at least 1.
        limit_s: no round begins after so many seconds, where 5 are done.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = last_line = time.perf_counter()
    for number in range(repeats + 1):
        if number > LEAST_ROUNDS and time.perf_counter() - start > limit_s:
            break
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) * 1e3)
        if time.perf_counter() - last_line > LINE_EVERY_S:
            last_line = time.perf_counter()
            print(f"{number} of at most {repeats} rounds, {last_line - start:.0f} s", file=sys.stderr)
    return {name: _summary(values[1:]) for name, values in times.items()}


def _summary(times: Sequence[float]) -> dict[str, float]:
    low, high = np.percentile(times, [10, 99])
    median = statistics.median(times)
    return {
        "p10": round(float(low), 2),
        "median": round(median, 2),
        "p99": round(float(high), 2),
        "rounds": len(times),
    }

"""Paired bootstrap intervals over queries, and over queries and runs.

Queries are drawn with replacement; every column of `values` sees the same draws, so the difference of two columns is
paired. Percentile intervals. Needs numpy alone; the same seed gives the same interval, to the last bit: the sums are
exact, so that neither threads nor the columns beside change it. The draws are of places: give queries in one order.

Dims: N queries, M columns (metrics of scorers), S resamples.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000
_DRAWS_AT_ONCE = 4_000_000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the interval in which it lies at the given level."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class MeanAlone:
    """A mean of too few queries for an interval: resamples of one query say it is certain."""

    mean: float
    low: None = None
    high: None = None

    def __str__(self) -> str:
        return f"{self.mean:.4f} [-]"


def resampled_means(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """(S, M): the mean of each column over each resample of the queries.

    Args:
        values: (N, M), one row a query; N at least 1, all finite.
        resamples: S, at least 1.
        seed: of the draws.

    Raises:
        ValueError: no query, a value that is not finite, or no resample.
    """
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"values has shape {values.shape}; wanted (N, M) with at least one query")
    if not np.isfinite(values).all():
        raise ValueError("values holds NaN or infinity; a metric is always a number")
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: wanted at least 1")
    N = len(values)
    high, low = _summable(values)
    parts = np.concatenate([high, low], axis=1)  # (N, 2M)
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // N)
    means = np.empty((resamples, values.shape[1]))
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = generator.integers(0, N, (rows, N)) + N * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * N).reshape(rows, N)  # (rows, N) how often each is drawn
        sums = counts.astype(np.float64) @ parts
        means[first : first + rows] = (sums[:, : high.shape[1]] + sums[:, high.shape[1] :]) / N
    return means


def _summable(values: Floats) -> tuple[Floats, Floats]:
    """Two tables (N, M) that add up to the values, and of which N rows sum without rounding in any order.

    Of each column a part is a whole number of steps, few enough for a float64 to count N of them; what the second
    leaves over is below 2^-80 of the largest value, for a million rows.
    """
    bits = len(values).bit_length() + 1 - 53
    step = np.ldexp(1.0, np.frexp(np.abs(values).max(0))[1] + bits)
    high = np.rint(values / step) * step
    step = np.ldexp(step, bits)
    return high, np.rint((values - high) / step) * step


def interval_of(mean: float, means: Floats, *, level: float = 0.95) -> Interval:
    """The percentile interval of resampled means (S,) around the mean of the sample.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: wanted a share between 0 and 1")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(mean), low=float(low), high=float(high))


def mean_interval(values: Floats, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one metric over queries (N,), with its interval.

    Raises:
        ValueError: as `resampled_means` and `interval_of`.
    """
    values = np.asarray(values, dtype=np.float64)
    means = resampled_means(values[:, None], resamples=resamples, seed=seed)
    return interval_of(values.mean(), means[:, 0], level=level)


def difference_interval(
    ours: Floats, theirs: Floats, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of ours - theirs over the same queries (N,), with its paired interval.

    Raises:
        ValueError: different numbers of queries, or as `mean_interval`.
    """
    if np.shape(ours) != np.shape(theirs):
        raise ValueError(f"ours has {np.shape(ours)} queries, theirs {np.shape(theirs)}; paired means the same queries")
    return mean_interval(np.asarray(ours) - np.asarray(theirs), resamples=resamples, level=level, seed=seed)


def seeds_interval(values: Floats, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean over runs and queries of values (runs, N), with an interval that holds both kinds of chance.

    Runs and queries are crossed: every resample draws queries (the same for all runs) and runs, both with replacement.
    With one run only the queries vary. Few runs give too narrow an interval: 2 know little of the spread between runs.

    Raises:
        ValueError: no run, or as `mean_interval`.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"values has shape {values.shape}; wanted (runs, N) with at least one run")
    runs = len(values)
    means = resampled_means(values.T, resamples=resamples, seed=seed)  # (S, runs)
    drawn = np.random.default_rng([seed, runs]).integers(0, runs, (resamples, runs))
    return interval_of(values.mean(), np.take_along_axis(means, drawn, axis=1).mean(1), level=level)


def seeds_difference(
    ours: Floats, theirs: Floats, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of ours (runs, N) - theirs (other runs, N) over the same queries, which both see in every resample.

    Raises:
        ValueError: other queries, or as `seeds_interval`.
    """
    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"ours has shape {ours.shape}, theirs {theirs.shape}; paired means the same queries")
    table = np.concatenate([ours, theirs]).T  # (N, runs)
    means = resampled_means(table, resamples=resamples, seed=seed)
    generator = np.random.default_rng([seed, len(ours), len(theirs)])
    sides = []
    for part in (means[:, : len(ours)], means[:, len(ours) :]):
        drawn = generator.integers(0, part.shape[1], part.shape)
        sides.append(np.take_along_axis(part, drawn, axis=1).mean(1))
    return interval_of(float(ours.mean() - theirs.mean()), sides[0] - sides[1], level=level)

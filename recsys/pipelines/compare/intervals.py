"""Intervals of scorers that answered the same questions, paired, over users and over the runs of each model.

Every resample draws users once for all scorers, and of each model its runs with replacement; a scorer of one run has
its users alone to vary.

Dims: N queries, S runs (seeds) of one scorer, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.pipelines.evaluation.bootstrap import RESAMPLES, Interval, interval_of, resampled_means

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedMeans:
    """The mean of each scorer, and its mean in every resample (R,)."""

    means: dict[str, float]
    resampled: dict[str, Floats]

    def interval(self, name: str) -> Interval:
        """Of the mean."""
        return interval_of(self.means[name], self.resampled[name])

    def difference(self, ours: str, theirs: str) -> Interval:
        """Of ours - theirs."""
        return interval_of(self.means[ours] - self.means[theirs], self.resampled[ours] - self.resampled[theirs])


def paired_means(values: Mapping[str, Floats], *, resamples: int = RESAMPLES, seed: int = 0) -> PairedMeans:
    """Means of a metric over queries and runs.

    Args:
        values: of each scorer (S, N): the metric of each query in each run; N the same for all, S its own.
        resamples: R.
        seed: of the draws.

    Raises:
        ValueError: scorers of different numbers of queries, or as `resampled_means`.
    """
    sizes = {table.shape[1] for table in values.values()}
    if len(sizes) != 1:
        raise ValueError(f"scorers answered {sorted(sizes)} queries; paired means the same queries")
    columns = np.concatenate([table.T for table in values.values()], axis=1)  # (N, sum of S)
    drawn = resampled_means(columns, resamples=resamples, seed=seed)  # (R, sum of S)
    generator = np.random.default_rng([seed, 1])
    means, resampled, first = {}, {}, 0
    for name, table in values.items():
        runs = len(table)
        own = drawn[:, first : first + runs]
        if runs > 1:
            own = np.take_along_axis(own, generator.integers(0, runs, own.shape), axis=1)
        means[name], resampled[name] = float(table.mean()), own.mean(axis=1)
        first += runs
    return PairedMeans(means, resampled)

"""Figures by slice: where a scorer is good, and where not.

A dimension cuts the queries (history length, idle time, known or new user) or the targets (popularity, age of the
item). A slice of targets asks each query that has one there for those targets alone. What needs real time is absent,
and says why, where the order is not by time.

Dims: N queries, R targets of all queries, V items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, offsets_of
from recsys.pipelines.evaluation.bootstrap import Interval, MeanAlone, interval_of, resampled_means
from recsys.pipelines.evaluation.list_metrics import first_training_times
from recsys.pipelines.evaluation.metrics import metrics_per_query

RESAMPLES = 1_000
LEAST_QUERIES = 10  # of a slice with intervals
HISTORY_BOUNDS = (5, 10, 20, 50, 100)  # events; the first slice ends before 5
DAY_US = 86_400_000_000
AGE_BOUNDS = {"1 day": DAY_US, "7 days": 7 * DAY_US, "30 days": 30 * DAY_US, "180 days": 180 * DAY_US}
IDLE_BOUNDS = {"1 hour": DAY_US // 24, "1 day": DAY_US, "7 days": 7 * DAY_US, "30 days": 30 * DAY_US}
HEAD_SHARE, MID_SHARE = 1 / 3, 2 / 3  # of the training events: the most popular items that hold a third are the head

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dimension:
    """Labels in order, and the label number of each query (N,) or target (R,)."""

    labels: Sequence[str]
    number: Integers
    is_of_targets: bool


@dataclass(frozen=True)
class SliceReport:
    """slices: dimension -> label -> {"n": queries, "scorers": {scorer: {metric: interval}}}; absent: why not."""

    slices: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def rows(self, metric: str) -> list[dict[str, str]]:
        """One row a slice, as text: dimension, slice, n, and the metric of every scorer."""
        return [
            {"by": dimension, "slice": label, "n": str(found["n"])}
            | {scorer: str(figures[metric]) for scorer, figures in found["scorers"].items()}
            for dimension, labels in self.slices.items()
            for label, found in labels.items()
        ]


def slice_metrics(
    ranks: Mapping[str, Floats], dataset: PreparedDataset, queries: Queries, *, k: int = 10, seed: int = 0
) -> SliceReport:
    """HR, NDCG and MRR at k of every scorer in every slice that holds a query, with intervals from 10 queries on.

    Args:
        ranks: scorer -> expected rank of each target, (R,).
        dataset: whose training part says what is popular and known.
        queries: N queries.
        k: list length.
        seed: of the bootstrap.
    """
    report = SliceReport()
    for name, found in dimensions(dataset, queries).items():
        if isinstance(found, str):
            report.absent[name] = found
            continue
        report.slices[name] = {}
        for number, label in enumerate(found.labels):
            part = _slice(ranks, queries, found, number, k, seed)
            if part is not None:
                report.slices[name][label] = part
    return report


def dimensions(dataset: PreparedDataset, queries: Queries) -> dict[str, Dimension | str]:
    """Every dimension by name; a text says why it is absent."""
    known = dataset.train_slices()
    is_new = ~np.isin(queries.user, known.user[known.lengths > 0])
    result: dict[str, Dimension | str] = {
        "history length": _by_bounds(queries.lengths, HISTORY_BOUNDS, _length_labels(), of_targets=False),
        "target popularity": _by_popularity(dataset.train_counts(), queries.target_items),
        "user": Dimension(("known", "new"), is_new.astype(np.int64), is_of_targets=False),
    }
    if queries.query_time is None:
        reason = f"order is {dataset.order}; ages need real times: prepare the data with timestamps"
        return result | {"item age": reason, "user idle": reason}
    return result | {"item age": _by_age(dataset, queries), "user idle": _by_idle(queries)}


def _by_popularity(counts: Integers, targets: Integers) -> Dimension:
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # events of all more popular items
    group = np.empty(len(counts), dtype=np.int64)
    group[order] = np.digitize(before / max(1, counts.sum()), (HEAD_SHARE, MID_SHARE))
    group[counts == 0] = 3
    return Dimension(("head", "mid", "tail", "never trained"), group[targets], is_of_targets=True)


def _by_age(dataset: PreparedDataset, queries: Queries) -> Dimension:
    first = first_training_times(dataset)
    assert first is not None
    assert queries.query_time is not None
    asked = np.repeat(queries.query_time, np.diff(queries.target_offsets))
    born = first[queries.target_items]
    is_born = born > np.iinfo(np.int64).min
    labels = (*_time_labels(AGE_BOUNDS), "never trained")
    number = np.digitize(asked - np.where(is_born, born, asked), list(AGE_BOUNDS.values()))
    return Dimension(labels, np.where(is_born, number, len(labels) - 1), is_of_targets=True)


def _by_idle(queries: Queries) -> Dimension:
    assert queries.query_time is not None
    last = np.empty(len(queries), dtype=np.int64)
    for number, shard in enumerate(queries.shards):
        mine = queries.shard == number
        assert shard.times is not None
        last[mine] = shard.times[queries.end[mine] - 1]
    return _by_bounds(
        queries.query_time - last, tuple(IDLE_BOUNDS.values()), _time_labels(IDLE_BOUNDS), of_targets=False
    )


def _by_bounds(values: Integers, bounds: Sequence[int], labels: Sequence[str], *, of_targets: bool) -> Dimension:
    return Dimension(labels, np.digitize(values, bounds), of_targets)


def _length_labels() -> tuple[str, ...]:
    low = (1, *HISTORY_BOUNDS)
    return (*(f"{a}-{b - 1}" for a, b in zip(low, HISTORY_BOUNDS, strict=False)), f"{HISTORY_BOUNDS[-1]}+")


def _time_labels(bounds: Mapping[str, int]) -> tuple[str, ...]:
    names = list(bounds)
    between = (f"{a} to {b}" for a, b in zip(names, names[1:], strict=False))
    return (f"under {names[0]}", *between, f"{names[-1]} and more")


def _slice(
    ranks: Mapping[str, Floats], queries: Queries, dimension: Dimension, number: int, k: int, seed: int
) -> dict[str, Any] | None:
    is_in = dimension.number == number
    targets = np.diff(queries.target_offsets)
    keep = is_in if dimension.is_of_targets else np.repeat(is_in, targets)
    left = np.add.reduceat(keep.astype(np.int64), queries.target_offsets[:-1])  # targets of each query
    if not keep.any():
        return None
    offsets = offsets_of(left[left > 0])
    columns = {name: metrics_per_query(found[keep], offsets, (k,)) for name, found in ranks.items()}
    return {"n": len(offsets) - 1, "scorers": _intervals(columns, k, seed)}


def _intervals(
    columns: Mapping[str, dict[str, Floats]], k: int, seed: int
) -> dict[str, dict[str, Interval | MeanAlone]]:
    names = [(scorer, f"{metric}@{k}") for scorer in columns for metric in ("hr", "ndcg", "mrr")]
    table = np.stack([columns[scorer][metric] for scorer, metric in names], axis=1)
    result: dict[str, dict[str, Interval | MeanAlone]] = {scorer: {} for scorer in columns}
    if len(table) < LEAST_QUERIES:
        for (scorer, metric), mean in zip(names, table.mean(0).tolist(), strict=True):
            result[scorer][metric] = MeanAlone(mean)
        return result
    means = resampled_means(table, resamples=RESAMPLES, seed=seed)
    for column, (scorer, metric) in enumerate(names):
        result[scorer][metric] = interval_of(float(table[:, column].mean()), means[:, column])
    return result

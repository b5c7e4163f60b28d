"""Exact full-ranking evaluation: floors below, the ceiling above, paired bootstrap intervals between.

How targets are ranked stands in `full_ranking`, what the figures mean in `metrics`.

Dims: N queries, R targets of all queries.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, flat_items
from recsys.models.floors import Popularity, TransitionKNN
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.pipelines.evaluation.bootstrap import Interval, interval_of, resampled_means
from recsys.pipelines.evaluation.full_ranking import Observe, Seen, rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query

__all__ = ["Evaluation", "Seen", "Split", "evaluate", "rank_targets"]

Split = Literal["valid", "test"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What each scorer reached on one split.

    metrics: scorer -> metric ("ndcg@10") -> interval. differences: scorer -> metric -> paired difference against
    `best_floor`, absent where there is no floor. reachable: share of targets that any scorer could have ranked.
    by_user: "known" (users with training events) and "new" -> {"n": queries, scorer: {metric: mean}}.
    """

    protocol: str
    split: str
    seen: str
    n: int
    num_targets: int
    reachable: float
    cold_users: int
    cold_targets: int
    repeated_targets: int
    metrics: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    floors: list[str]
    best_floor: str | None
    oracle: str | None
    by_user: dict[str, dict[str, Any]]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: dicts, lists, strings and numbers."""
        return asdict(self)

    def table(self, names: Sequence[str] = ("hr@10", "ndcg@10", "mrr@10")) -> list[dict[str, str]]:
        """One row a scorer, as text: name, kind, each metric with its interval, the difference to the best floor."""
        return [self._row(scorer, names) for scorer in self.metrics]

    def _row(self, scorer: str, names: Sequence[str]) -> dict[str, str]:
        kind = "floor" if scorer in self.floors else "oracle" if scorer == self.oracle else "model"
        row = {"scorer": scorer, "kind": kind}
        row |= {name: str(self.metrics[scorer][name]) for name in names}
        if scorer in self.differences:
            last = names[-1] if "ndcg@10" not in names else "ndcg@10"
            difference = self.differences[scorer][last]
            row[f"{last} - {self.best_floor}"] = (
                f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
            )
        return row


def evaluate(
    scorers: Mapping[str, NextItemModel | Scorer],
    dataset: PreparedDataset,
    split: Split = "test",
    seen: Seen = "exclude",
    ks: Sequence[int] = (5, 10, 20),
    *,
    observe: Observe | None = None,
    seed: int = 0,
) -> Evaluation:
    """Rank every target of the split by every scorer.

    Args:
        scorers: by name; floors and oracle are known by their class. At least one.
        dataset: whose split asks the questions.
        split: `valid` or `test`.
        seen: whether items of the history may be recommended again.
        ks: list lengths.
        observe: told {"scorer", "done", "total", "queries_per_s"} after each batch.
        seed: of the bootstrap.

    Raises:
        ValueError: no scorer.
        DataError: the split asks no question.
        TrainingDiverged: a score is NaN; the scorer is named.
    """
    if not scorers:
        raise ValueError("scorers is empty; give at least one, such as {'popularity': Popularity.fit(dataset)}")
    queries = dataset.queries(split)
    if len(queries) == 0:
        raise DataError(
            f"{dataset.path}: its {split} part asks no question ({queries.num_cold} users there have no history); "
            "prepare it with another protocol, or evaluate another split"
        )
    values: dict[str, dict[str, Floats]] = {}
    seconds: dict[str, float] = {}
    for name, scorer in scorers.items():
        began = time.perf_counter()
        ranks = rank_targets(scorer, dataset, queries, seen, name=name, observe=observe)
        seconds[name] = round(time.perf_counter() - began, 3)
        values[name] = metrics_per_query(ranks, queries.target_offsets, ks)
    return _summary(scorers, dataset, queries, split, seen, values, seconds, seed)


def _summary(
    scorers: Mapping[str, NextItemModel | Scorer],
    dataset: PreparedDataset,
    queries: Queries,
    split: Split,
    seen: Seen,
    values: dict[str, dict[str, Floats]],
    seconds: dict[str, float],
    seed: int,
) -> Evaluation:
    metrics, differences, best_floor = _intervals(scorers, values, seed)
    is_cold, is_repeat = _unreachable(dataset, queries)
    is_out = is_cold | is_repeat if seen == "exclude" else is_cold
    return Evaluation(
        protocol=dataset.protocol_string(split, seen),
        split=split,
        seen=seen,
        n=len(queries),
        num_targets=len(is_cold),
        reachable=float(1.0 - is_out.mean()),
        cold_users=queries.num_cold,
        cold_targets=int(is_cold.sum()),
        repeated_targets=int(is_repeat.sum()),
        metrics=metrics,
        differences=differences,
        floors=_floors(scorers),
        best_floor=best_floor,
        oracle=next((name for name, scorer in scorers.items() if isinstance(scorer, ShopOracle)), None),
        by_user=_by_user(dataset, queries, values),
        seconds=seconds,
    )


def _intervals(
    scorers: Mapping[str, NextItemModel | Scorer], values: dict[str, dict[str, Floats]], seed: int
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]], str | None]:
    """Intervals of every metric and of its paired difference to the best floor, all from the same resamples."""
    columns = [(scorer, metric) for scorer in values for metric in values[scorer]]
    table = np.stack([values[scorer][metric] for scorer, metric in columns], axis=1)  # (N, M)
    means = dict(zip(columns, table.mean(0).tolist(), strict=True))
    resampled = dict(zip(columns, resampled_means(table, seed=seed).T, strict=True))
    metrics: dict[str, dict[str, Interval]] = {scorer: {} for scorer in values}
    differences: dict[str, dict[str, Interval]] = {}
    floor = _best_floor(_floors(scorers), values)
    for scorer, metric in columns:
        metrics[scorer][metric] = interval_of(means[scorer, metric], resampled[scorer, metric])
        if floor is not None and scorer != floor:
            differences.setdefault(scorer, {})[metric] = interval_of(
                means[scorer, metric] - means[floor, metric], resampled[scorer, metric] - resampled[floor, metric]
            )
    return metrics, differences, floor


def _floors(scorers: Mapping[str, NextItemModel | Scorer]) -> list[str]:
    return [name for name, scorer in scorers.items() if isinstance(scorer, Popularity | TransitionKNN)]


def _best_floor(floors: Sequence[str], values: dict[str, dict[str, Floats]]) -> str | None:
    """The floor that is hardest to pass on this very split, by NDCG at 10 (at the last k where 10 is not asked)."""
    if not floors:
        return None
    names = [name for name in values[floors[0]] if name.startswith("ndcg@")]
    metric = "ndcg@10" if "ndcg@10" in names else names[-1]
    return max(floors, key=lambda floor: float(values[floor][metric].mean()))


def _unreachable(dataset: PreparedDataset, queries: Queries) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of each target: is its item absent from training, and does it stand in the history, (R,) each."""
    width, owner = dataset.num_items + 1, np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    is_cold = dataset.train_counts()[queries.target_items] == 0
    seen = np.repeat(np.arange(len(queries)), queries.lengths) * width + flat_items(queries)
    return is_cold, np.isin(owner * width + queries.target_items, seen)


def _by_user(
    dataset: PreparedDataset, queries: Queries, values: dict[str, dict[str, Floats]]
) -> dict[str, dict[str, Any]]:
    """Means over users with and without training events: {"known": {"n": ..., scorer: {metric: mean}}, "new": ...}."""
    train = dataset.train_slices()
    is_known = np.isin(queries.user, train.user[train.lengths > 0])
    groups: dict[str, dict[str, Any]] = {}
    for group, keep in (("known", is_known), ("new", ~is_known)):
        groups[group] = {"n": int(keep.sum())}
        if keep.any():
            groups[group] |= {
                scorer: {metric: float(column[keep].mean()) for metric, column in columns.items()}
                for scorer, columns in values.items()
            }
    return groups

"""Exact full-ranking evaluation: floors below, the ceiling above, paired bootstrap intervals between.

How targets are ranked stands in `full_ranking`, what the figures mean in `metrics`.

Dims: N queries, R targets of all queries.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, flat_items
from recsys.models.floors import FLOOR_CLASSES
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.pipelines.evaluation.bootstrap import Interval, interval_of, resampled_means
from recsys.pipelines.evaluation.evaluation import Evaluation
from recsys.pipelines.evaluation.full_ranking import Observe, Precision, Seen, rank_targets
from recsys.pipelines.evaluation.list_metrics import Diversity, list_metrics
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.evaluation.sampled import By, draw_negatives, sampled_protocol, sampled_ranks
from recsys.pipelines.evaluation.slices import SliceReport, slice_metrics
from recsys.pipelines.evaluation.states import QueryStates
from recsys.pipelines.evaluation.top_lists import top_lists
from recsys.pipelines.floors.ranking import rank_floor

__all__ = ["Evaluation", "Seen", "Split", "evaluate", "evaluate_sampled", "rank_targets"]

Split = Literal["valid", "test"]
Floats = npt.NDArray[np.float64]
Scorers = Mapping[str, NextItemModel | Scorer]


def evaluate(
    scorers: Scorers,
    dataset: PreparedDataset,
    split: Split = "test",
    seen: Seen = "exclude",
    ks: Sequence[int] = (5, 10, 20),
    *,
    observe: Observe | None = None,
    seed: int = 0,
    with_lists: bool = False,
    with_slices: bool = False,
    list_k: int = 10,
    diversity: Diversity | None = None,
    precision: Precision = "screen",
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
        with_lists: also what the lists of `list_k` items are like.
        with_slices: also HR, NDCG and MRR by slice.
        list_k: items of a list.
        diversity: how far two items are apart; by default by the vectors of the first model among the scorers.
        precision: as for `rank_targets`; `plain` also ranks the floors by all their scores. The figures are the same.

    Raises:
        ValueError: no scorer.
        DataError: the split asks no question.
        TrainingDiverged: a score is NaN; the scorer is named.
    """
    queries = _queries(scorers, dataset, split)
    diversity = _diversity(scorers) if diversity is None else diversity
    ranks: dict[str, Floats] = {}
    lists: dict[str, dict[str, float | None]] = {}
    seconds: dict[str, float] = {}
    for name, scorer in scorers.items():
        began = time.perf_counter()
        states = QueryStates(scorer, dataset, queries) if isinstance(scorer, NextItemModel) else None
        if isinstance(scorer, FLOOR_CLASSES) and precision == "screen":
            ranks[name] = rank_floor(scorer, dataset, queries, seen)
        else:
            ranks[name] = rank_targets(
                scorer, dataset, queries, seen, name=name, observe=observe, states=states, precision=precision
            )
        seconds[name] = round(time.perf_counter() - began, 3)
        if with_lists:
            shown = top_lists(scorer, dataset, queries, list_k, seen, name=name, states=states, precision=precision)
            lists[name] = list_metrics(shown, dataset, queries, diversity)
    values = {name: metrics_per_query(found, queries.target_offsets, ks) for name, found in ranks.items()}
    return _summary(
        scorers,
        dataset,
        queries,
        split,
        seen,
        values,
        seconds,
        seed,
        lists=lists,
        list_k=list_k,
        diversity_of=None if diversity is None or not with_lists else diversity.of,
        slices=slice_metrics(ranks, dataset, queries, seed=seed) if with_slices else SliceReport(),
    )


def evaluate_sampled(
    scorers: Scorers,
    dataset: PreparedDataset,
    split: Split = "test",
    ks: Sequence[int] = (5, 10, 20),
    *,
    num_negatives: int = 100,
    by: By = "uniform",
    sample_seed: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Rank every target among sampled negatives: for comparison with papers alone, told apart by its protocol.

    Args:
        scorers, dataset, split, ks, seed: as for `evaluate`.
        num_negatives, by, sample_seed: as for `draw_negatives`.

    Raises:
        ValueError: no scorer, or fewer than one negative.
        DataError: the split asks no question, or a user has too few items to draw from.
        TrainingDiverged: a score is NaN; the scorer is named.
    """
    queries = _queries(scorers, dataset, split)
    negatives = draw_negatives(dataset, queries, num_negatives, by, sample_seed)
    values: dict[str, dict[str, Floats]] = {}
    seconds: dict[str, float] = {}
    for name, scorer in scorers.items():
        began = time.perf_counter()
        ranks = sampled_ranks(scorer, dataset, queries, negatives=negatives, name=name)
        seconds[name] = round(time.perf_counter() - began, 3)
        values[name] = metrics_per_query(ranks, queries.target_offsets, ks)
    protocol = sampled_protocol(dataset.protocol_string(split, "exclude"), num_negatives, by, sample_seed)
    ranking = f"sampled-{num_negatives}-{by}"
    return _summary(scorers, dataset, queries, split, "keep", values, seconds, seed, protocol=protocol, ranking=ranking)


def _queries(scorers: Scorers, dataset: PreparedDataset, split: Split) -> Queries:
    if not scorers:
        raise ValueError("scorers is empty; give at least one, such as {'popularity': Popularity.fit(dataset)}")
    queries = dataset.queries(split)
    if len(queries) == 0:
        raise DataError(
            f"{dataset.path}: its {split} part asks no question ({queries.num_cold} users there have no history); "
            "prepare it with another protocol, or evaluate another split"
        )
    return queries


def _diversity(scorers: Scorers) -> Diversity | None:
    for name, scorer in scorers.items():
        if isinstance(scorer, NextItemModel):
            return Diversity(of=f"vectors of {name}", vectors=scorer.item_vectors().detach())
    return None


def _summary(
    scorers: Scorers,
    dataset: PreparedDataset,
    queries: Queries,
    split: Split,
    seen: Seen,
    values: dict[str, dict[str, Floats]],
    seconds: dict[str, float],
    seed: int,
    *,
    protocol: str | None = None,
    **more: Any,
) -> Evaluation:
    metrics, differences, best_floor = _intervals(scorers, values, seed)
    is_cold, is_repeat = _unreachable(dataset, queries)
    is_out = is_cold | is_repeat if seen == "exclude" else is_cold
    return Evaluation(
        protocol=dataset.protocol_string(split, seen) if protocol is None else protocol,
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
        values=values,
        **more,
    )


def _intervals(
    scorers: Scorers, values: dict[str, dict[str, Floats]], seed: int
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


def _floors(scorers: Scorers) -> list[str]:
    return [name for name, scorer in scorers.items() if isinstance(scorer, FLOOR_CLASSES)]


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

"""Exact full-ranking evaluation: every item is a candidate, floors below, the ceiling above, intervals between.

    rank = 1 + (candidates with a greater score) + (candidates with an equal score, the target left out) / 2

Items that never occur in training are no candidates, for models and floors alike; a target among them ranks `inf`, a
miss. With seen="exclude" the whole history (not only what the model reads) leaves the candidates, and a target that
repeats it is a miss. A score of -inf says "never": such a target is a miss too.

Determinism: which histories are scored together depends on the dataset and its V alone, and dot products are taken in
float64 and rounded once to float32, so a rank does not depend on how many rows are scored at a time, but for what the
model's own encoder does.

Dims: N queries, R targets of all queries, B rows of a batch, V items.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.errors import DataError, TrainingDiverged
from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, Slices, ranges
from recsys.models.floors import Popularity, TransitionKNN, flat_items
from recsys.models.oracle import ShopOracle
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.score import scores_of
from recsys.pipelines.bootstrap import Interval, interval_of, resampled_means
from recsys.pipelines.metrics import metrics_per_query

Seen = Literal["exclude", "keep"]
Split = Literal["valid", "test"]
Observe = Callable[[dict[str, Any]], None]
Floats = npt.NDArray[np.float64]

SCORE_BYTES = 256 * 2**20  # memory for the scores of one batch and the copies made of them
_BYTES_PER_SCORE = 32
_MAX_ROWS = 1024


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
        ranks = _ranks(name, scorer, dataset, queries, seen, observe, SCORE_BYTES)
        seconds[name] = round(time.perf_counter() - began, 3)
        values[name] = metrics_per_query(ranks, queries.target_offsets, ks)
    return _summary(scorers, dataset, queries, split, seen, values, seconds, seed)


def rank_targets(
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    seen: Seen = "exclude",
    *,
    observe: Observe | None = None,
    score_bytes: int = SCORE_BYTES,
) -> Floats:
    """Expected rank of every target, (R,) float64 in the order of `queries.target_items`; `inf` where out of reach.

    Args:
        scorer: a model, ranked in eval mode and on its own device, or a Scorer.
        dataset: the queries are of this dataset.
        queries: histories and their targets.
        seen: `exclude` takes the items of the history out of the candidates; `keep` leaves them in.
        observe: told {"scorer", "done", "total", "queries_per_s"} after each batch.
        score_bytes: memory for the scores of a batch and the copies made of them.

    Raises:
        ValueError: an unknown seen rule, or scores of the wrong shape.
        TrainingDiverged: a score is NaN.
    """
    return _ranks(type(scorer).__name__, scorer, dataset, queries, seen, observe, score_bytes)


@torch.no_grad()
def _ranks(
    name: str,
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    seen: Seen,
    observe: Observe | None,
    score_bytes: int,
) -> Floats:
    if seen not in ("exclude", "keep"):
        raise ValueError(f"seen={seen!r}: wanted exclude or keep")
    ranks, began, done = np.empty(len(queries.target_items)), time.perf_counter(), 0
    cold = torch.from_numpy(np.flatnonzero(dataset.train_counts() == 0))
    with _eval_mode(scorer):
        device, vectors = _device_of(scorer), _double_vectors(scorer)
        for rows, batch in _batches(scorer, dataset, queries, score_bytes):
            scores = scores_of(scorer, batch.to(device), vectors).cpu()  # (B, V+1)
            _check_scores(name, scores, len(rows), dataset.num_items)
            scores = scores.index_fill(1, cold, -torch.inf)
            if seen == "exclude":
                scores[_history_cells(queries, rows)] = -torch.inf
            ranks[ranges(queries.target_offsets[rows], queries.target_offsets[rows + 1])] = _batch_ranks(
                scores, queries, rows
            )
            done += len(rows)
            if observe is not None:
                speed = done / (time.perf_counter() - began)
                observe({"scorer": name, "done": done, "total": len(queries), "queries_per_s": round(speed, 1)})
    return ranks


def _batches(
    scorer: NextItemModel | Scorer, dataset: PreparedDataset, queries: Queries, score_bytes: int
) -> Iterator[tuple[npt.NDArray[np.int64], JaggedBatch]]:
    rows = min(_MAX_ROWS, max(1, score_bytes // (_BYTES_PER_SCORE * (dataset.num_items + 1))))
    longest = int(queries.lengths.max(initial=1))
    max_len = min(longest, getattr(scorer, "max_len", longest))
    return query_batches(dataset, queries, max_len=max_len, max_rows=rows)


def _batch_ranks(scores: Tensor, queries: Queries, rows: npt.NDArray[np.int64]) -> Floats:
    """Ranks of the targets of these queries, flat, in the order of `rows`; scores (B, V+1) without what is left out."""
    start, end = queries.target_offsets[rows], queries.target_offsets[rows + 1]
    table, row = scores.numpy(), np.repeat(np.arange(len(rows)), end - start)
    target_scores = table[row, queries.target_items[ranges(start, end)]]  # (targets,)
    ranks = np.empty(len(row))
    for first in range(0, len(row), len(rows)):
        part = slice(first, first + len(rows))
        own, target = table if len(row) == len(rows) else table[row[part]], target_scores[part, None]
        greater, equal = np.count_nonzero(own > target, axis=1), np.count_nonzero(own == target, axis=1)
        ranks[part] = 1.0 + greater + (equal - 1) / 2.0
    ranks[target_scores == -np.inf] = np.inf
    return ranks


def _history_cells(queries: Queries, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Row and column of every event of these histories."""
    histories = Slices(queries.shards, queries.shard[rows], queries.start[rows], queries.end[rows], queries.user[rows])
    row = np.repeat(np.arange(len(rows)), histories.lengths)
    return torch.from_numpy(row), torch.from_numpy(flat_items(histories))


def _check_scores(name: str, scores: Tensor, num_rows: int, num_items: int) -> None:
    if scores.shape != (num_rows, num_items + 1):
        raise ValueError(f"{name}: scores have shape {tuple(scores.shape)}, wanted {(num_rows, num_items + 1)}")
    is_nan = torch.isnan(scores.amax(dim=1))  # the greatest of a row that holds NaN is NaN
    if is_nan.any():
        share = is_nan.float().mean().item()
        raise TrainingDiverged(
            f"{name}: scores are NaN for {share:.0%} of {num_rows} histories; its weights are not finite: "
            "train again with a lower learning rate, or take an earlier checkpoint"
        )


def _device_of(scorer: NextItemModel | Scorer) -> torch.device:
    parameters = scorer.parameters() if isinstance(scorer, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _double_vectors(scorer: NextItemModel | Scorer) -> Tensor | None:
    return scorer.item_vectors().double() if isinstance(scorer, NextItemModel) else None


@contextmanager
def _eval_mode(scorer: NextItemModel | Scorer) -> Iterator[None]:
    if not isinstance(scorer, nn.Module) or not scorer.training:
        yield
        return
    scorer.eval()
    try:
        yield
    finally:
        scorer.train()


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

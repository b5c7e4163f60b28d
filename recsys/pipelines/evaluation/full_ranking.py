"""The exact rank of every target among all items.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys.errors import TrainingDiverged
from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, Slices, flat_items, ranges
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.score import scores_of

Seen = Literal["exclude", "keep"]
Observe = Callable[[dict[str, Any]], None]
Floats = npt.NDArray[np.float64]

SCORE_BYTES = 256 * 2**20  # memory for the scores of one batch and the copies made of them
_BYTES_PER_SCORE = 32
_MAX_ROWS = 1024


@torch.no_grad()
def rank_targets(
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    seen: Seen = "exclude",
    *,
    name: str | None = None,
    observe: Observe | None = None,
    score_bytes: int = SCORE_BYTES,
) -> Floats:
    """Expected rank of every target, (R,) float64 in the order of `queries.target_items`; `inf` where out of reach.

    Args:
        scorer: a model, ranked in eval mode and on its own device, or a Scorer.
        dataset: the queries are of this dataset.
        queries: histories and their targets.
        seen: `exclude` takes the items of the history out of the candidates; `keep` leaves them in.
        name: of the scorer in messages; its class by default.
        observe: told {"scorer", "done", "total", "queries_per_s"} after each batch.
        score_bytes: memory for the scores of a batch and the copies made of them.

    Raises:
        ValueError: an unknown seen rule, or scores of the wrong shape.
        TrainingDiverged: a score is NaN.
    """
    name = type(scorer).__name__ if name is None else name
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

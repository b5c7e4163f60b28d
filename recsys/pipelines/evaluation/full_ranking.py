"""The exact rank of every target among all items.

    rank = 1 + (candidates with a greater score) + (candidates with an equal score, the target left out) / 2

Items that never occur in training are no candidates, for models and floors alike; a target among them ranks `inf`, a
miss. With seen="exclude" the whole history (not only what the model reads) leaves the candidates, and a target that
repeats it is a miss. A score of -inf says "never": such a target is a miss too.

Two ways to the same ranks of a model: `plain` is the definition, every score in float64, rounded once to float32;
`screen` decides nearly all items by float32 products whose error is bounded (`models/ranking/screen.py`) and scores the
rest in float64. Neither depends on how many rows are scored at a time, nor on threads, but for what the model's own
encoder does.

Dims: N queries, R targets of all queries, B rows of a batch, V items.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import TrainingDiverged
from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, Slices, flat_items, ranges
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.score import scores_of, scores_of_states
from recsys.models.ranking.screen import Cells, ScreenedItems, count_above, full_float32
from recsys.models.ranking.threads import in_threads
from recsys.pipelines.evaluation.states import QueryStates, device_of, eval_mode

Seen = Literal["exclude", "keep"]
Precision = Literal["screen", "plain"]
Observe = Callable[[dict[str, Any]], None]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

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
    precision: Precision = "screen",
    states: QueryStates | None = None,
) -> Floats:
    """Expected rank of every target, (R,) float64 in the order of `queries.target_items`; `inf` where out of reach.

    Args:
        scorer: a model, ranked in eval mode and on its own device, or a Scorer.
        dataset: the queries are of this dataset.
        queries: histories and their targets.
        seen: `exclude` takes the items of the history out of the candidates; `keep` leaves them in.
        name: of the scorer in messages; its class by default.
        observe: told {"scorer", "done", "total", "queries_per_s"} after each batch.
        score_bytes: memory for the scores of a batch and the copies made of them; screening needs 12 MiB of its own.
        precision: how a model's products are taken; the ranks are the same. A Scorer's scores are taken as they are.
        states: of the model and these queries, kept from an earlier call.

    Raises:
        ValueError: an unknown seen rule or precision, or scores of the wrong shape.
        TrainingDiverged: a score is NaN.
    """
    name = type(scorer).__name__ if name is None else name
    if seen not in ("exclude", "keep"):
        raise ValueError(f"seen={seen!r}: wanted exclude or keep")
    if precision not in ("screen", "plain"):
        raise ValueError(f"precision={precision!r}: wanted screen or plain")
    table = Candidates(dataset, queries, seen)
    ranks, began, done = np.empty(len(queries.target_items)), time.perf_counter(), 0
    if isinstance(scorer, NextItemModel):
        parts = _model_ranks(scorer, table, name, score_bytes, precision, states)
    else:
        parts = _scorer_ranks(scorer, table, name, score_bytes)
    with eval_mode(scorer), full_float32():
        for rows, found in parts:
            ranks[ranges(queries.target_offsets[rows], queries.target_offsets[rows + 1])] = found
            done += len(rows)
            if observe is not None:
                speed = done / (time.perf_counter() - began)
                observe({"scorer": name, "done": done, "total": len(queries), "queries_per_s": round(speed, 1)})
    return ranks


class Candidates:
    """Which items compete in each query.

    Args:
        dataset: items without an event in its training part never do.
        queries: with seen="exclude" the items of a query's history do not.
        seen: the rule.
    """

    def __init__(self, dataset: PreparedDataset, queries: Queries, seen: Seen) -> None:
        self.dataset, self.queries, self.seen = dataset, queries, seen
        self.is_candidate = dataset.train_counts() > 0  # (V+1,)
        self._cold = torch.from_numpy(np.flatnonzero(~self.is_candidate))

    def mask(self, scores: Tensor, rows: Integers) -> Tensor:
        """Scores (B, V+1) of these queries with -inf for all that do not compete; may be changed in place."""
        scores = scores.index_fill(1, self._cold.to(scores.device), -torch.inf)
        row, item = self.hidden(rows)
        scores[row.to(scores.device), item.to(scores.device)] = -torch.inf
        return scores

    def hidden(self, rows: Integers) -> Cells:
        """Cells (place in `rows`, item) that the history hides, rows ascending."""
        if self.seen == "keep":
            nothing = torch.empty(0, dtype=torch.int64)
            return Cells(nothing, nothing)
        part = self.queries
        histories = Slices(part.shards, part.shard[rows], part.start[rows], part.end[rows], part.user[rows])
        row = np.repeat(np.arange(len(rows)), histories.lengths)
        return Cells(torch.from_numpy(row), torch.from_numpy(flat_items(histories)))

    def targets(self, rows: Integers) -> tuple[Integers, Integers]:
        """Place in `rows` and item of each target of these queries, flat, in their order."""
        start, end = self.queries.target_offsets[rows], self.queries.target_offsets[rows + 1]
        return np.repeat(np.arange(len(rows)), end - start), self.queries.target_items[ranges(start, end)]


def score_batches(
    scorer: Scorer, table: Candidates, name: str, score_bytes: int = SCORE_BYTES
) -> Iterator[tuple[Integers, Tensor]]:
    """Query numbers (B,) and the scores (B, V+1) float32 of a Scorer, masked, so many at a time as memory allows.

    Raises:
        ValueError, TrainingDiverged: as `rank_targets`.
    """
    queries = table.queries
    longest = int(queries.lengths.max(initial=1))
    max_len = min(longest, getattr(scorer, "max_len", longest))
    device = device_of(scorer)
    for rows, batch in _batches(table, max_len, score_bytes):
        scores = scores_of(scorer, batch.to(device)).cpu()  # (B, V+1)
        check_scores(name, scores, len(rows), table.dataset.num_items)
        yield rows, table.mask(scores, rows)


def check_scores(name: str, scores: Tensor, num_rows: int, num_items: int) -> None:
    """Refuse scores of the wrong shape (ValueError) and NaN (TrainingDiverged)."""
    if scores.shape != (num_rows, num_items + 1):
        raise ValueError(f"{name}: scores have shape {tuple(scores.shape)}, wanted {(num_rows, num_items + 1)}")
    is_nan = torch.isnan(scores.amax(dim=1))  # the greatest of a row that holds NaN is NaN
    if is_nan.any():
        share = is_nan.float().mean().item()
        raise TrainingDiverged(
            f"{name}: scores are NaN for {share:.0%} of {num_rows} histories; its weights are not finite: "
            "train again with a lower learning rate, or take an earlier checkpoint"
        )


def _scorer_ranks(scorer: Scorer, table: Candidates, name: str, score_bytes: int) -> Iterator[tuple[Integers, Floats]]:
    for rows, scores in score_batches(scorer, table, name, score_bytes):
        yield rows, _ranks_of_scores(scores, table, rows)


def _model_ranks(
    model: NextItemModel,
    table: Candidates,
    name: str,
    score_bytes: int,
    precision: Precision,
    states: QueryStates | None,
) -> Iterator[tuple[Integers, Floats]]:
    device, vectors = device_of(model), model.item_vectors()
    items = ScreenedItems(vectors, torch.from_numpy(table.is_candidate))
    double = vectors.double()

    def ranked(batch: tuple[Integers, Tensor]) -> tuple[Integers, Floats]:
        rows, part = batch
        is_screened = items.screens(part).cpu().numpy() if precision == "screen" else np.zeros(len(rows), dtype=bool)
        start, end = table.queries.target_offsets[rows], table.queries.target_offsets[rows + 1]
        of_target = np.repeat(is_screened, end - start)
        ranks = np.empty(len(of_target))
        where = torch.from_numpy(np.flatnonzero(is_screened)).to(part.device)
        ranks[of_target] = _screened_ranks(items, part[where], table, rows[is_screened])
        where = torch.from_numpy(np.flatnonzero(~is_screened)).to(part.device)
        ranks[~of_target] = _plain_ranks(double, part[where], table, rows[~is_screened], name, score_bytes)
        return rows, ranks

    return in_threads(ranked, QueryStates(model, table.dataset, table.queries) if states is None else states, device)


def _screened_ranks(items: ScreenedItems, states: Tensor, table: Candidates, rows: Integers) -> Floats:
    if len(rows) == 0:
        return np.empty(0)
    row, target = table.targets(rows)
    hidden = table.hidden(rows)
    device = states.device
    flat_row, flat_target = torch.from_numpy(row).to(device), torch.from_numpy(target).to(device)
    cells = Cells(hidden.row.to(device), hidden.item.to(device))
    above, equal = count_above(items, states, flat_row, flat_target, cells)
    ranks = 1.0 + above.cpu().numpy() + equal.cpu().numpy() / 2.0
    width = len(table.is_candidate)
    keys = hidden.row.numpy() * width + hidden.item.numpy()
    is_hidden = np.isin(keys, row * width + target)  # the longer side first: the shorter one is sorted
    ranks[np.isin(row * width + target, keys[is_hidden]) | ~table.is_candidate[target]] = np.inf
    return ranks


def _plain_ranks(
    vectors: Tensor, states: Tensor, table: Candidates, rows: Integers, name: str, score_bytes: int
) -> Floats:
    at_once = rows_at_once(len(vectors), score_bytes)
    found = [np.empty(0)]
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        scores = scores_of_states(states[first : first + at_once], vectors).cpu()  # (B, V+1)
        check_scores(name, scores, len(part), table.dataset.num_items)
        found.append(_ranks_of_scores(table.mask(scores, part), table, part))
    return np.concatenate(found)


def _ranks_of_scores(scores: Tensor, table: Candidates, rows: Integers) -> Floats:
    """Ranks of the targets of these queries, flat, in the order of `rows`; scores (B, V+1) without what is left out."""
    matrix, (row, target) = scores.numpy(), table.targets(rows)
    target_scores = matrix[row, target]  # (targets,)
    ranks = np.empty(len(row))
    for first in range(0, len(row), len(rows)):
        part = slice(first, first + len(rows))
        own, wanted = matrix if len(row) == len(rows) else matrix[row[part]], target_scores[part, None]
        greater, equal = np.count_nonzero(own > wanted, axis=1), np.count_nonzero(own == wanted, axis=1)
        ranks[part] = 1.0 + greater + (equal - 1) / 2.0
    ranks[target_scores == -np.inf] = np.inf
    return ranks


def _batches(table: Candidates, max_len: int, score_bytes: int) -> Iterator[tuple[Integers, JaggedBatch]]:
    rows = rows_at_once(table.dataset.num_items + 1, score_bytes)
    return query_batches(table.dataset, table.queries, max_len=max_len, max_rows=rows)


def rows_at_once(width: int, score_bytes: int) -> int:
    """Rows of that many scores which fit into the memory."""
    return min(_MAX_ROWS, max(1, score_bytes // (_BYTES_PER_SCORE * width)))

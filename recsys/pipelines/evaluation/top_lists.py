"""The lists that a scorer would show: its k best items for each query.

The same candidates as in ranking; equal scores stand in the order of their index, as the server shows them. Memory is
bounded by `score_bytes`, whatever V.

Dims: N queries, B rows of a batch, V items.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.best_items import best_items
from recsys.models.ranking.score import scores_of_states
from recsys.models.ranking.screen import Cells, ScreenedItems, full_float32
from recsys.models.ranking.threads import in_threads
from recsys.models.ranking.top_k import top_k
from recsys.pipelines.evaluation.full_ranking import (
    SCORE_BYTES,
    Candidates,
    Precision,
    Seen,
    check_scores,
    rows_at_once,
    score_batches,
)
from recsys.pipelines.evaluation.states import QueryStates, device_of, eval_mode

Integers = npt.NDArray[np.int64]


@torch.no_grad()
def top_lists(
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    k: int = 10,
    seen: Seen = "exclude",
    *,
    name: str | None = None,
    score_bytes: int = SCORE_BYTES,
    precision: Precision = "screen",
    states: QueryStates | None = None,
) -> Integers:
    """The k best items of each query, best first, (N, k) int64; 0 where fewer candidates have a score.

    Args:
        scorer: a model, in eval mode and on its own device, or a Scorer.
        dataset: the queries are of this dataset.
        queries: histories.
        k: at least 1.
        seen, name, score_bytes, precision, states: as for `rank_targets`.

    Raises:
        ValueError: k < 1, or scores of the wrong shape.
        TrainingDiverged: a score is NaN.
    """
    if k < 1:
        raise ValueError(f"k={k}: wanted at least 1")
    name = type(scorer).__name__ if name is None else name
    table, lists = Candidates(dataset, queries, seen), np.zeros((len(queries), k), dtype=np.int64)
    with eval_mode(scorer), full_float32():
        if not isinstance(scorer, NextItemModel):
            for rows, scores in score_batches(scorer, table, name, score_bytes):
                lists[rows] = _best(scores, k)
            return lists
        shown = _ModelLists(scorer, table, name, k, score_bytes, precision)
        batches = QueryStates(scorer, dataset, queries) if states is None else states
        parts = (
            (rows[first : first + shown.at_once], part[first : first + shown.at_once])
            for rows, part in batches
            for first in range(0, len(rows), shown.at_once)
        )
        for rows, found in in_threads(shown.of, parts, device_of(scorer)):
            lists[rows] = found
    return lists


class _ModelLists:
    def __init__(
        self, model: NextItemModel, table: Candidates, name: str, k: int, score_bytes: int, precision: Precision
    ) -> None:
        self.table, self.name, self.k, self.precision = table, name, k, precision
        self.vectors = model.item_vectors()
        self.double = self.vectors.double()
        self.items = ScreenedItems(self.vectors, torch.from_numpy(table.is_candidate))
        self.at_once = rows_at_once(len(self.vectors), score_bytes)

    def of(self, batch: tuple[Integers, Tensor]) -> tuple[Integers, Integers]:
        """Query numbers and their lists (B, k)."""
        rows, states = batch
        lists = np.zeros((len(rows), self.k), dtype=np.int64)
        is_done = np.zeros(len(rows), dtype=bool)
        if self.precision == "screen":
            screened = torch.nonzero(self.items.screens(states)).flatten()
            numbers = screened.cpu().numpy()
            hidden = self.table.hidden(rows[numbers])
            cells = Cells(hidden.row.to(states.device), hidden.item.to(states.device))
            found, is_proven = best_items(self.items, states[screened], self.k, cells)
            lists[numbers], is_done[numbers] = found.cpu().numpy(), is_proven.cpu().numpy()
        left = np.flatnonzero(~is_done)
        if len(left):
            scores = scores_of_states(states[torch.from_numpy(left).to(states.device)], self.double).cpu()
            check_scores(self.name, scores, len(left), self.table.dataset.num_items)
            lists[left] = _best(self.table.mask(scores, rows[left]), self.k)
        return rows, lists


def _best(scores: Tensor, k: int) -> Integers:
    """(B, k) from masked scores (B, V+1); 0 where only -inf is left."""
    item, best = top_k(scores, k)
    found: Integers = torch.where(best > -torch.inf, item, 0).numpy()
    return np.pad(found, ((0, 0), (0, k - found.shape[1])))

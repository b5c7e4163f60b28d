"""Ranks among sampled negatives, for comparison with papers that report such figures, and for nothing else.

A target competes with the query's other targets and with `num_negatives` items that are neither in the user's history
nor among the targets, drawn without replacement, uniformly or by popularity. Such figures are far higher than
full-ranking ones and may order models otherwise: Krichene and Rendle 2020, On sampled metrics for item recommendation
(KDD).

The negatives are a function of (seed, user index) and the data alone, the same for every scorer.

Dims: N queries, R targets, B rows, K negatives, V items.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import DataError, TrainingDiverged
from recsys.features.batches import query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, ranges
from recsys.models.protocols import NextItemModel, Scorer
from recsys.models.ranking.screen import ScreenedItems
from recsys.pipelines.evaluation.full_ranking import SCORE_BYTES, rows_at_once
from recsys.pipelines.evaluation.states import QueryStates, device_of, eval_mode

By = Literal["uniform", "popularity"]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def draw_negatives(
    dataset: PreparedDataset, queries: Queries, num_negatives: int = 100, by: By = "uniform", seed: int = 0
) -> Integers:
    """Negatives of each query, (N, K) int64 item indices, distinct, neither seen nor a target.

    Args:
        dataset: items with training events are drawn.
        queries: N queries.
        num_negatives: K, at least 1.
        by: `uniform`, or `popularity`: proportional to training events, one after the other without replacement.
        seed: of the draws.

    Raises:
        ValueError: K < 1, or an unknown `by`.
        DataError: a user has fewer than K such items.
    """
    if num_negatives < 1:
        raise ValueError(f"num_negatives={num_negatives}: wanted at least 1")
    if by not in ("uniform", "popularity"):
        raise ValueError(f"by={by!r}: wanted uniform or popularity")
    counts = dataset.train_counts()
    weight = counts.astype(np.float64) if by == "popularity" else (counts > 0).astype(np.float64)
    cumulative = np.cumsum(weight)
    drawn = np.empty((len(queries), num_negatives), dtype=np.int64)
    for n in range(len(queries)):
        user = int(queries.user[n])
        left_out = np.union1d(queries.gather(n)[0], queries.targets(n)).astype(np.int64)
        available = int((counts > 0).sum() - (counts[left_out] > 0).sum())
        if available < num_negatives:
            raise DataError(
                f"{dataset.path}: user index {user} has only {available} items that are neither seen nor a target, "
                f"wanted {num_negatives} negatives; sample fewer"
            )
        drawn[n] = _draw(np.random.default_rng([seed, user]), weight, cumulative, left_out, num_negatives)
    return drawn


@torch.no_grad()
def sampled_ranks(
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    *,
    num_negatives: int = 100,
    by: By = "uniform",
    seed: int = 0,
    negatives: Integers | None = None,
    name: str | None = None,
    states: QueryStates | None = None,
) -> Floats:
    """Expected rank of every target among its query's targets and negatives, (R,) float64.

    A target that was never trained on competes like any other; where its score is -inf it ranks `inf`.

    Args:
        scorer, dataset, queries, name, states: as for `rank_targets`.
        num_negatives, by, seed: as for `draw_negatives`.
        negatives: drawn before, (N, K).

    Raises:
        ValueError, DataError: as `draw_negatives`.
        TrainingDiverged: a score is NaN.
    """
    name = type(scorer).__name__ if name is None else name
    if negatives is None:
        negatives = draw_negatives(dataset, queries, num_negatives, by, seed)
    ranks = np.empty(len(queries.target_items))
    with eval_mode(scorer):
        for rows, own, others, of_target in _scores(scorer, dataset, queries, negatives, states):
            if torch.isnan(own).any() or torch.isnan(others).any():
                raise TrainingDiverged(f"{name}: a score is NaN; train again with a lower learning rate")
            against = others[torch.from_numpy(of_target)]  # (targets, K)
            better, equal = (against > own[:, None]).sum(1), (against == own[:, None]).sum(1)
            more, alike = _among_targets(own.numpy(), *_targets(queries, rows))
            found = 1.0 + better.numpy() + more + (equal.numpy() + alike) / 2.0
            found[own.numpy() == -np.inf] = np.inf
            ranks[ranges(queries.target_offsets[rows], queries.target_offsets[rows + 1])] = found
    return ranks


def sampled_protocol(full: str, num_negatives: int, by: By, seed: int) -> str:
    """The protocol string of sampled figures: the sample's name in place of `full-rank` and of the seen rule."""
    parts = ["sampled" if part == "full-rank" else part for part in full.split("/")]
    parts = [part for part in parts if not part.startswith(("exclude-seen", "keep-seen"))]
    return "/".join(f"sampled-{num_negatives}-{by}(seed={seed})" if part == "sampled" else part for part in parts)


def _draw(generator: np.random.Generator, weight: Floats, cumulative: Floats, left_out: Integers, num: int) -> Integers:
    """`num` distinct items by weight, one after the other; rejects what was drawn before or is left out."""
    taken = np.empty(0, dtype=np.int64)
    for _ in range(4):
        tries = generator.random(2 * num + 16) * cumulative[-1]
        found = np.searchsorted(cumulative, tries, side="right")
        found = np.concatenate([taken, found[~np.isin(found, left_out)]])
        _, first = np.unique(found, return_index=True)
        taken = found[np.sort(first)]
        if len(taken) >= num:
            return taken[:num]
    # The rest is rare: the smallest of exponential times with rate `weight` go on with the same draw.
    rest = weight.copy()
    rest[left_out] = rest[taken] = 0.0
    with np.errstate(divide="ignore"):
        times = generator.exponential(size=len(rest)) / rest
    return np.concatenate([taken, np.argsort(times, kind="stable")[: num - len(taken)]])


def _scores(
    scorer: NextItemModel | Scorer,
    dataset: PreparedDataset,
    queries: Queries,
    negatives: Integers,
    states: QueryStates | None,
) -> Iterator[tuple[Integers, Tensor, Tensor, Integers]]:
    """Query numbers (B,), scores of their targets (r,) and negatives (B, K), and the row of each target (r,)."""
    if isinstance(scorer, NextItemModel):
        is_any = torch.ones(dataset.num_items + 1, dtype=torch.bool)
        items = ScreenedItems(scorer.item_vectors(), is_any)
        for rows, part in QueryStates(scorer, dataset, queries) if states is None else states:
            row, target = _targets(queries, rows)
            own = items.exact_scores(part, *(torch.from_numpy(x).to(part.device) for x in (row, target)))
            pair = np.repeat(np.arange(len(rows)), negatives.shape[1])
            flat = negatives[rows].ravel()
            others = items.exact_scores(part, *(torch.from_numpy(x).to(part.device) for x in (pair, flat)))
            yield rows, own.cpu(), others.view(len(rows), -1).cpu(), row
        return
    longest = int(queries.lengths.max(initial=1))
    max_len, at_once = min(longest, getattr(scorer, "max_len", longest)), rows_at_once(len(dataset.items), SCORE_BYTES)
    device = device_of(scorer)
    for rows, batch in query_batches(dataset, queries, max_len=max_len, max_rows=at_once):
        row, target = _targets(queries, rows)
        widest = int(np.bincount(row).max())
        asked = np.concatenate([negatives[rows], np.zeros((len(rows), widest), dtype=np.int64)], axis=1)
        place = np.arange(len(row)) - np.searchsorted(row, row)
        asked[row, negatives.shape[1] + place] = target
        scores = scorer.scores(batch.to(device), torch.from_numpy(asked).to(device)).float().cpu()
        yield rows, scores[row, negatives.shape[1] + place], scores[:, : negatives.shape[1]], row


def _among_targets(scores: npt.NDArray[np.float32], row: Integers, item: Integers) -> tuple[Integers, Integers]:
    """How many other items among the targets of its query have a greater, and an equal score, (r,) each."""
    _, number = np.unique(scores, return_inverse=True)
    key = row * len(scores) + number  # ascending in the score within a query
    _, first = np.unique(row * (item.max(initial=0) + 1) + item, return_index=True)
    keys = np.sort(key[first])  # an item asked for twice competes once
    below, upto = np.searchsorted(keys, key), np.searchsorted(keys, key, side="right")
    return np.searchsorted(keys, (row + 1) * len(scores)) - upto, upto - below - 1


def _targets(queries: Queries, rows: Integers) -> tuple[Integers, Integers]:
    start, end = queries.target_offsets[rows], queries.target_offsets[rows + 1]
    return np.repeat(np.arange(len(rows)), end - start), queries.target_items[ranges(start, end)]

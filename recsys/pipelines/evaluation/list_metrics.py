"""What the shown lists are like, whoever is right: coverage, exposure, novelty, popularity, diversity, repeats.

A list holds up to k items; a place left empty counts nowhere. Formulas, bounds and sources stand in
docs/evaluation.md. "Popularity" is always the number of an item's events in the training part.

Dims: N queries, V items, D width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, Shard, flat_items, ranges

NEW_SHARE = 0.1  # of the training events, the last ones: an item first seen among them is new
_ROWS_AT_ONCE = 4096

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Diversity:
    """How far two items are apart: 1 - cosine of vectors (V+1, D), or 0 and 1 by labels (V+1,) int64, -1 unknown."""

    of: str  # "category", or "vectors of NAME"
    vectors: Tensor | None = None
    labels: Integers | None = None

    def __post_init__(self) -> None:
        if (self.vectors is None) == (self.labels is None):
            raise ValueError("Diversity takes either vectors or labels")


def list_metrics(
    lists: Integers, dataset: PreparedDataset, queries: Queries, diversity: Diversity | None = None
) -> dict[str, float | None]:
    """Figures of the lists; None where the data cannot tell.

    Args:
        lists: (N, k) int64 item indices, best first, 0 for an empty place.
        dataset: whose training part says what is popular.
        queries: N queries, whose histories the lists are compared with.
        diversity: how far items are apart; without it `diversity` is None.

    Returns:
        `coverage` (share of the candidates shown to anybody), `gini` (of exposure over candidates, 0 equal, 1 one item
        gets all), `novelty` (bits, mean self-information), `popularity` (mean), `popularity_bias` (mean popularity of
        the lists over that of the histories), `diversity` (mean distance of two items of a list), `repeats` (share of
        shown items that the history holds), `new_items` (share of shown items that entered with the last tenth of
        the training events; None where the order is not by time).

    Raises:
        ValueError: lists of another number of queries, or indices that are no items.
    """
    V = dataset.num_items
    if lists.ndim != 2 or len(lists) != len(queries):
        raise ValueError(f"lists has shape {lists.shape}; wanted ({len(queries)}, k), one list for each query")
    if lists.size and (lists.min() < 0 or lists.max() > V):
        raise ValueError(f"lists holds index {int(lists.max())}; wanted 0..{V}")
    counts, is_shown = dataset.train_counts(), lists > 0
    shown = lists[is_shown]
    if len(shown) == 0:
        names = ("coverage", "gini", "novelty", "popularity", "popularity_bias", "diversity", "repeats", "new_items")
        return dict.fromkeys(names)
    exposure = np.bincount(shown, minlength=V + 1)[counts > 0]
    is_new = new_items(dataset)
    return {
        "coverage": float((exposure > 0).mean()),
        "gini": gini(exposure),
        "novelty": _mean_of_lists(_self_information(counts)[lists], is_shown),
        "popularity": _mean_of_lists(counts[lists].astype(np.float64), is_shown),
        "popularity_bias": _popularity_bias(lists, is_shown, counts, queries),
        "diversity": None if diversity is None else _diversity(lists, diversity),
        "repeats": float(_is_repeat(lists, queries, V)[is_shown].mean()),
        "new_items": None if is_new is None else _mean_of_lists(is_new[lists].astype(np.float64), is_shown),
    }


def gini(exposure: npt.NDArray[np.integer]) -> float:
    """Gini index of how often each item is shown: 0 where all are shown alike, 1 - 1/n where one of n gets all."""
    n, total = len(exposure), int(exposure.sum())
    if total == 0:
        return 0.0
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(exposure)).sum() / (n * total))


def new_items(dataset: PreparedDataset) -> npt.NDArray[np.bool_] | None:
    """(V+1,) bool: did the item's first training event come with the last tenth of them? None without real times."""
    first = first_training_times(dataset)
    if first is None:
        return None
    times = np.concatenate([shard.times[_train_places(shard)] for shard in dataset.shards])  # type: ignore[index]  # order is time
    return first >= np.quantile(times, 1.0 - NEW_SHARE) if len(times) else np.zeros(len(first), dtype=bool)


def first_training_times(dataset: PreparedDataset) -> Integers | None:
    """(V+1,) int64 us, the first training event of each item, -2^63 where there is none; None without real times."""
    if dataset.order != "time":
        return None
    none = np.iinfo(np.int64)
    first = np.full(dataset.num_items + 1, none.max, dtype=np.int64)
    for shard in dataset.shards:
        place = _train_places(shard)
        assert shard.times is not None
        np.minimum.at(first, shard.items[place], shard.times[place])
    first[first == none.max] = none.min
    return first


def _train_places(shard: Shard) -> Integers:
    offsets, train_end = shard.offsets, shard.train_end
    return ranges(offsets[:-1], offsets[:-1] + train_end)


def _self_information(counts: Integers) -> Floats:
    """(V+1,) bits: -log2 of the item's share of the training events; 0 for what never occurs, which is never shown."""
    share = counts / max(1, counts.sum())
    return -np.log2(np.where(share > 0, share, 1.0))


def _mean_of_lists(values: Floats, is_shown: npt.NDArray[np.bool_]) -> float:
    """The mean over users of the mean over their list; users without a list left out."""
    sizes = is_shown.sum(1)
    return float(((values * is_shown).sum(1)[sizes > 0] / sizes[sizes > 0]).mean())


def _popularity_bias(
    lists: Integers, is_shown: npt.NDArray[np.bool_], counts: Integers, queries: Queries
) -> float | None:
    offsets = np.concatenate([[0], np.cumsum(queries.lengths)])
    history = np.add.reduceat(counts[flat_items(queries)].astype(np.float64), offsets[:-1]) / queries.lengths
    before = float(history.mean())
    return _mean_of_lists(counts[lists].astype(np.float64), is_shown) / before if before > 0 else None


def _is_repeat(lists: Integers, queries: Queries, num_items: int) -> npt.NDArray[np.bool_]:
    """(N, k): does the history hold this item?"""
    width = num_items + 1
    seen = np.repeat(np.arange(len(queries)), queries.lengths) * width + flat_items(queries)
    return np.isin(np.arange(len(lists))[:, None] * width + lists, seen)


def _diversity(lists: Integers, diversity: Diversity) -> float | None:
    """The mean over lists of at least two known items of the mean distance of their pairs."""
    means = [
        _distances(lists[first : first + _ROWS_AT_ONCE], diversity) for first in range(0, len(lists), _ROWS_AT_ONCE)
    ]
    flat = np.concatenate(means)
    return float(flat.mean()) if len(flat) else None


def _distances(lists: Integers, diversity: Diversity) -> Floats:
    is_known = lists > 0
    if diversity.labels is not None:
        labels = diversity.labels[lists]
        is_known &= labels >= 0
        near = (labels[:, :, None] == labels[:, None, :]).astype(np.float64)
    else:
        assert diversity.vectors is not None
        chosen = diversity.vectors.detach().cpu()[torch.from_numpy(lists)].double()
        chosen = chosen / torch.linalg.vector_norm(chosen, dim=2, keepdim=True).clamp_min(1e-30)
        near = torch.bmm(chosen, chosen.transpose(1, 2)).numpy()  # (n, k, k)
    pair = is_known[:, :, None] & is_known[:, None, :] & ~np.eye(lists.shape[1], dtype=bool)
    pairs = pair.sum((1, 2))
    found: Floats = ((1.0 - near) * pair).sum((1, 2))[pairs > 0] / pairs[pairs > 0]
    return found

"""The ranks of `rank_targets`, for floors, without a score for every item.

Two kinds of floors need no (B, V+1) scores. Where links lead to few items, those few are sorted and all others are
equal; where every history gets the same scores, the items are sorted once. All else goes to `rank_targets`. The ranks
are equal to the last bit: sums run in the same order in float64 and are rounded once to float32.

Dims: N queries, R targets of all queries, B rows of a batch, V items.
"""

import numpy as np
import numpy.typing as npt

from recsys.features.batches import query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries, Slices, flat_items, ranges
from recsys.models.floors import Popularity, RecentPopularity
from recsys.models.floors.link_scorer import LinkScorer
from recsys.models.protocols import Scorer
from recsys.pipelines.evaluation.full_ranking import Seen, rank_targets

_MAX_ROWS = 1024

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def rank_floor(scorer: Scorer, dataset: PreparedDataset, queries: Queries, seen: Seen = "exclude") -> Floats:
    """Expected rank of every target, (R,) float64, equal to `rank_targets(scorer, dataset, queries, seen)`.

    Args:
        scorer: a fitted floor; another Scorer is ranked by `rank_targets` itself.
        dataset: the queries are of this dataset.
        queries: histories and their targets.
        seen: `exclude` takes the items of the history out of the candidates; `keep` leaves them in.

    Raises:
        ValueError: an unknown seen rule.
    """
    if seen not in ("exclude", "keep"):
        raise ValueError(f"seen={seen!r}: wanted exclude or keep")
    counts = dataset.train_counts()
    if isinstance(scorer, Popularity | RecentPopularity) and scorer.constant is not None:
        return _constant_ranks(scorer.constant.astype(np.float32), counts, queries, seen)
    if not isinstance(scorer, LinkScorer) or not scorer.is_sparse:
        return rank_targets(scorer, dataset, queries, seen)
    ranks = np.empty(len(queries.target_items))
    longest = int(queries.lengths.max(initial=1))
    for numbers, batch in query_batches(dataset, queries, max_len=min(longest, scorer.max_len), max_rows=_MAX_ROWS):
        for rows, cell, gain in scorer.entries(batch):
            part = numbers[rows]
            cells, scores = _summed(cell - rows.start * len(counts), gain)
            place = ranges(queries.target_offsets[part], queries.target_offsets[part + 1])
            ranks[place] = _sparse_ranks(cells, scores, counts, queries, part, seen)
    return ranks


def _summed(cell: Integers, gain: Floats) -> tuple[Integers, Singles]:
    """Distinct cells, ascending, and the sum of their gains, each added in the order given; sums of 0 are left out."""
    bits = len(cell).bit_length()
    packed = np.sort(cell << bits | np.arange(len(cell)))
    cells = packed >> bits
    is_first = np.diff(cells, prepend=-1) != 0
    # bincount adds in order, as it does for dense scores; reduceat would add in pairs.
    sums = np.bincount(np.cumsum(is_first) - 1, weights=gain[packed & ((1 << bits) - 1)]).astype(np.float32)
    is_positive = sums > 0
    return cells[is_first][is_positive], sums[is_positive]


def _sparse_ranks(
    cells: Integers, scores: Singles, counts: Integers, queries: Queries, numbers: Integers, seen: Seen
) -> Floats:
    """Ranks of the targets of these queries; every cell that is not listed has score 0."""
    B, width = len(numbers), len(counts)
    known = _seen_cells(queries, numbers, width, seen)
    owner, target, is_out = _targets(counts, queries, numbers, known)
    candidates = np.full(B, np.count_nonzero(counts))
    candidates -= np.bincount(known[counts[known % width] > 0] // width, minlength=B)
    keep = ~_is_among(cells, known)
    cells, scores = cells[keep], scores[keep]
    place = np.minimum(np.searchsorted(cells, target), max(len(cells) - 1, 0))
    has_score = cells[place] == target if len(cells) else np.zeros(len(target), bool)
    own = np.zeros(len(target), np.float32)
    own[has_score] = scores[place[has_score]]
    greater, equal = _above(cells // width, scores, owner, own)
    equal = np.where(has_score, equal, candidates[owner] - greater)
    ranks = 1.0 + greater + (equal - 1) / 2.0
    ranks[is_out] = np.inf
    return ranks


def _above(row: Integers, scores: Singles, owner: Integers, own: Singles) -> tuple[Integers, Integers]:
    """How many scores of row owner[r] are greater than own[r], and how many equal it; scores are positive."""
    # Positive floats order as their bits do: one integer holds row and score, and one search finds both.
    listed = np.sort(row << 32 | scores.view(np.int32).astype(np.int64))
    asked = owner << 32 | own.view(np.int32).astype(np.int64)
    left, right = (np.searchsorted(listed, asked, side=side) for side in ("left", "right"))
    return np.searchsorted(listed, (owner + 1) << 32) - right, right - left


def _constant_ranks(scores: Singles, counts: Integers, queries: Queries, seen: Seen) -> Floats:
    """Ranks by scores (V+1,) that hold for every history."""
    numbers, width = np.arange(len(queries)), len(counts)
    known = _seen_cells(queries, numbers, width, seen)
    owner, cell, is_out = _targets(counts, queries, numbers, known)
    own, warm = scores[cell % width], np.sort(scores[1:][counts[1:] > 0])
    below, upto = np.searchsorted(warm, own, side="left"), np.searchsorted(warm, own, side="right")
    known = known[counts[known % width] > 0]
    level = np.searchsorted(np.sort(scores), scores, side="left")  # equal scores, equal level
    listed = np.sort(known // width * width + level[known % width])
    asked = owner * width + level[cell % width]
    left, right = np.searchsorted(listed, asked, side="left"), np.searchsorted(listed, asked, side="right")
    greater = len(warm) - upto - (np.searchsorted(listed, (owner + 1) * width) - right)
    equal = upto - below - (right - left)
    ranks = 1.0 + greater + (equal - 1) / 2.0
    ranks[is_out] = np.inf
    return ranks


def _targets(
    counts: Integers, queries: Queries, numbers: Integers, known: Integers
) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Of each target of these queries: row, cell row * (V+1) + item, and whether it is out of reach."""
    start, end = queries.target_offsets[numbers], queries.target_offsets[numbers + 1]
    owner, items = np.repeat(np.arange(len(numbers)), end - start), queries.target_items[ranges(start, end)]
    cell = owner * len(counts) + items
    return owner, cell, (counts[items] == 0) | _is_among(cell, known)


def _seen_cells(queries: Queries, numbers: Integers, width: int, seen: Seen) -> Integers:
    """Cells that are no candidates: of the whole histories of these queries, distinct and ascending."""
    if seen == "keep":
        return np.empty(0, np.int64)
    histories = Slices(
        queries.shards, queries.shard[numbers], queries.start[numbers], queries.end[numbers], queries.user[numbers]
    )
    cells = np.sort(np.repeat(np.arange(len(numbers)), histories.lengths) * width + flat_items(histories))
    return cells[np.diff(cells, prepend=-1) != 0]


def _is_among(values: Integers, known: Integers) -> npt.NDArray[np.bool_]:
    """Whether each value stands in `known`, which is ascending."""
    if len(known) == 0:
        return np.zeros(len(values), bool)
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values

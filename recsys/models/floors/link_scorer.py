"""Scores by weighted links from the items of a history to other items: what the kNN floors share.

    score[j] = sum over parts p, over the history's last events i: factor_p * decay_p^(age of i) * link_p[i, j]

Links are rows of (target, weight), never V x V, but for few items with links between most of them. The sum over a
history runs in one fixed order in float64, so a score does not depend on what else is asked in the batch.

Dims: B users, V items, K candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys.features.batches import JaggedBatch
from recsys.features.slices import ranges
from recsys.models.floors.asked import asked_events
from recsys.models.floors.columns import columns
from recsys.models.floors.training_events import parts_of

_ENTRIES_AT_ONCE = 2_000_000
_DENSE_BYTES = 256 * 2**20
_DENSE_SHARE = 0.1  # of all pairs; above it, adding whole rows is faster than adding their entries

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Links:
    """Weighted links between items: those of item i are targets[row_start[i]:row_start[i+1]], ascending."""

    def __init__(self, keys: Integers, weights: Floats, num_items: int) -> None:
        """keys: ascending and distinct, i * (V+1) + j. weights: of each, finite and not negative."""
        width = num_items + 1
        self.num_items, self.weights = num_items, weights
        self.row_start = np.searchsorted(keys, np.arange(width + 1, dtype=np.int64) * width)
        self.targets = keys % width
        is_dense = 8 * width**2 <= _DENSE_BYTES and len(keys) > _DENSE_SHARE * width**2
        self.table: Tensor | None = None  # (V+1, V+1) float64
        if is_dense:
            self.table = torch.zeros(width * width, dtype=torch.float64)
            self.table[torch.from_numpy(keys)] = torch.from_numpy(weights)
            self.table = self.table.view(width, width)


@dataclass(frozen=True)
class LinkPart:
    """Links and how a history asks them: its last `last` events, each weighing decay^age, all times `factor`."""

    links: Links
    last: int
    decay: float
    factor: float = 1.0


class LinkScorer:
    """Scorer: items that links lead to from the last events of the history; 0 where none leads."""

    def __init__(self, parts: tuple[LinkPart, ...]) -> None:
        """parts: at least one, all over the same items."""
        self.parts, self.num_items = parts, parts[0].links.num_items
        self.max_len = max(part.last for part in parts)

    @property
    def is_sparse(self) -> bool:
        """Whether `entries` tells all there is."""
        return all(part.links.table is None for part in self.parts)

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float64 with -inf in column 0, or (B, K) for `candidates`; 0 where no link leads."""
        B, width = len(batch.lengths), self.num_items + 1
        result = torch.zeros(B, width, dtype=torch.float64)
        for part in self.parts:
            if part.links.table is not None:
                result += _added_rows(batch, part, part.links.table)
        for rows, cell, gain in self.entries(batch):
            counted = np.bincount(cell - rows.start * width, weights=gain, minlength=(rows.stop - rows.start) * width)
            result[rows] += torch.from_numpy(counted).view(-1, width)
        result[:, 0] = -torch.inf
        return columns(result, candidates, batch)

    def entries(self, batch: JaggedBatch) -> Iterator[tuple[slice, Integers, Floats]]:
        """What sparse links add, for runs of histories: rows, cells row * (V+1) + item (repeated), gain of each."""
        asked = [(part, *asked_events(batch, part.last, part.decay)) for part in self.parts if part.links.table is None]
        reach = np.zeros(len(batch.lengths), dtype=np.int64)
        for part, row, item, _ in asked:
            lengths = part.links.row_start[item + 1] - part.links.row_start[item]
            reach += np.bincount(row, weights=lengths, minlength=len(reach)).astype(np.int64)
        for rows in parts_of(reach, _ENTRIES_AT_ONCE) if asked else ():
            cells, gains = zip(*(_entries(*one, rows) for one in asked), strict=True)
            yield rows, np.concatenate(cells), np.concatenate(gains)


def _entries(part: LinkPart, row: Integers, item: Integers, weight: Floats, rows: slice) -> tuple[Integers, Floats]:
    mine = slice(*np.searchsorted(row, [rows.start, rows.stop]))
    start, end = part.links.row_start[item[mine]], part.links.row_start[item[mine] + 1]
    entry = ranges(start, end)
    cell = np.repeat(row[mine] * (part.links.num_items + 1), end - start) + part.links.targets[entry]
    return cell, np.repeat(part.factor * weight[mine], end - start) * part.links.weights[entry]


def _added_rows(batch: JaggedBatch, part: LinkPart, table: Tensor) -> Tensor:
    """(B, V+1): the weighted sum of the rows of the table."""
    row, item, weight = asked_events(batch, part.last, part.decay)
    start = np.searchsorted(row, np.arange(len(batch.lengths)))
    weights = torch.from_numpy(part.factor * weight)
    return embedding_bag(torch.from_numpy(item), table, torch.from_numpy(start), mode="sum", per_sample_weights=weights)

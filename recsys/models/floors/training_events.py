"""Events of the training part as flat arrays, and the pairs of items that stand together in them.

Pairs are keys i * (V+1) + j, ascending, each with a weight. Memory grows with the distinct pairs, not with V x V.

Dims: V items, E training events, U users.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import flat_items, ranges

SET_LAST = 500  # events of a user that make up their set; bounds the pairs of one user
DENSE_ITEMS = 8192  # up to here a V x V table of float32 is at most 256 MiB

_PAIRS_AT_ONCE = 20_000_000

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Pairs = tuple[Integers, Floats]


@dataclass(frozen=True, eq=False)
class TrainingEvents:
    """The training part: items (E,) int64 in order, owner (E,) int64 from 0, popularity (V+1,) int64 events."""

    items: Integers
    owner: Integers
    popularity: Integers
    _latest: dict[int | None, Pairs] = field(default_factory=dict, repr=False)
    _counted: list["_Distances"] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, dataset: PreparedDataset) -> "TrainingEvents":
        """The training part of a dataset."""
        train = dataset.train_slices()
        owner = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
        return cls(flat_items(train), owner, dataset.train_counts())

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.popularity) - 1

    def followers(self, window: int, decay: float) -> Pairs:
        """Pairs (i before j) at most `window` events apart, each counting decay^(distance - 1)."""
        if self._counted and self._counted[0].window >= window:
            return self._counted[0].weighed(window, decay)
        return merged([pairs.weighed(window, decay) for pairs in self._distances(window)])

    def prepare(self, window: int) -> "TrainingEvents":
        """Self; where memory allows, pairs are counted once for all windows up to this one. No count changes by it."""
        if len(self.items) * window <= _PAIRS_AT_ONCE and not self._counted:
            self._counted.extend(self._distances(window))
        return self

    def neighbours(self, window: int | None) -> Pairs:
        """Pairs of different items, both directions: how often they stand at most `window` events apart.

        Without a window: the number of users who have both among their last SET_LAST training events. The latest
        answer is kept, for trials that ask the same again.
        """
        if window not in self._latest:
            self._latest.clear()
            self._latest[window] = self._neighbours(window)
        return self._latest[window]

    def together(self) -> Tensor:
        """(V+1, V+1) float32: the number of users who have both items among their last SET_LAST training events.

        The diagonal is the number of users of each item.
        """
        width = self.num_items + 1
        owner, item = np.divmod(self._memberships(), width)
        table = torch.zeros(width, width)
        if width <= DENSE_ITEMS + 1:
            for users in _blocks(owner, max(1, 2**25 // width)):
                rows = torch.zeros(int(owner[users.stop - 1] - owner[users.start]) + 1, width)
                rows[torch.from_numpy(owner[users] - owner[users.start]), torch.from_numpy(item[users])] = 1.0
                table.addmm_(rows.T, rows)
            return table
        keys, weights = self._sets()
        i, j = (torch.from_numpy(part) for part in np.divmod(keys, width))
        table[i, j] = table[j, i] = torch.from_numpy(weights).float()
        users_of = np.bincount(item, minlength=width)
        table.diagonal().copy_(torch.from_numpy(users_of).float())
        return table

    def _distances(self, window: int) -> Iterator["_Distances"]:
        """Pairs by distance, one lot where they fit into memory at once."""
        packed, waiting = [], 0
        for distance in range(1, min(window, len(self.items) - 1) + 1):
            is_pair = self.owner[distance:] == self.owner[:-distance]
            pair = self.items[:-distance][is_pair] * (self.num_items + 1) + self.items[distance:][is_pair]
            if len(pair) == 0:
                break
            packed.append(pair * window + (distance - 1))
            waiting += len(pair)
            if waiting >= _PAIRS_AT_ONCE:
                yield _Distances(np.concatenate(packed), window)
                packed, waiting = [], 0
        if packed:
            yield _Distances(np.concatenate(packed), window)

    def _neighbours(self, window: int | None) -> Pairs:
        if window is None and self.num_items <= DENSE_ITEMS:
            table = self.together().numpy()
            np.fill_diagonal(table, 0.0)
            keys = np.flatnonzero(table)
            return keys, table.ravel()[keys].astype(np.float64)
        keys, weights = self._sets() if window is None else self.followers(window, 1.0)
        i, j = np.divmod(keys, self.num_items + 1)
        keys, weights, i, j = keys[i != j], weights[i != j], i[i != j], j[i != j]
        return merged([(keys, weights), (j * (self.num_items + 1) + i, weights)])

    def _memberships(self) -> Integers:
        """owner * (V+1) + item, distinct and ascending, of the last SET_LAST events of each user."""
        if len(self.items) == 0:
            return np.empty(0, np.int64)
        ends = np.searchsorted(self.owner, self.owner, side="right")
        is_late = ends - np.arange(len(self.items)) <= SET_LAST
        cells = np.sort(self.owner[is_late] * (self.num_items + 1) + self.items[is_late])
        return cells[np.diff(cells, prepend=-1) != 0]

    def _sets(self) -> Pairs:
        """Pairs i < j of one user's set."""
        width = self.num_items + 1
        owner, item = np.divmod(self._memberships(), width)
        end, place = np.searchsorted(owner, owner, side="right"), np.arange(len(owner))
        found = []
        for part in parts_of(end - place - 1, _PAIRS_AT_ONCE):
            left = np.repeat(item[part], (end - place - 1)[part])
            keys = np.sort(left * width + item[ranges(place[part] + 1, end[part])])
            first = np.flatnonzero(np.diff(keys, prepend=-1))
            found.append((keys[first], np.diff(first, append=len(keys)).astype(np.float64)))
        return merged(found)


def merged(found: list[Pairs]) -> Pairs:
    """The pairs of all lists, ascending and distinct; weights of equal keys are added in the order of the lists."""
    if not found:
        return np.empty(0, np.int64), np.empty(0)
    if len(found) == 1:
        return found[0]
    keys, weights = np.concatenate([keys for keys, _ in found]), np.concatenate([weights for _, weights in found])
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(weights, first) if len(first) else weights


def parts_of(reach: Integers, at_once: int) -> Iterator[slice]:
    """Runs of rows that reach at most `at_once` entries together, at least one row each."""
    ends, first, done = np.cumsum(reach), 0, 0
    while first < len(ends):
        last = max(int(np.searchsorted(ends, done + at_once, side="right")), first + 1)
        yield slice(first, last)
        first, done = last, int(ends[last - 1])


class _Distances:
    """How far apart the items of each pair stood, each time they did."""

    def __init__(self, packed: Integers, window: int) -> None:
        """packed: pair * window + (distance - 1), in any order."""
        pairs, distance = np.divmod(np.sort(packed), window)
        is_first = np.diff(pairs, prepend=-1) != 0
        self.window, self.distance = window, distance.astype(np.int32)
        self.keys: Integers = pairs[is_first]
        self.group = np.cumsum(is_first) - 1

    def weighed(self, window: int, decay: float) -> Pairs:
        weight = decay ** np.arange(self.window, dtype=np.float64)
        weight[window:] = 0.0
        # bincount adds in order: zeros of wider distances change no bit of the sum.
        sums = np.bincount(self.group, weights=weight[self.distance], minlength=len(self.keys)).astype(np.float64)
        is_there = sums > 0
        return self.keys[is_there], sums[is_there]


def _blocks(owner: Integers, users: int) -> Iterator[slice]:
    """Runs of memberships of at most so many users, no user in two."""
    first = 0
    while first < len(owner):
        last = int(np.searchsorted(owner, owner[first] + users))
        yield slice(first, last)
        first = last

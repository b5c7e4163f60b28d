"""Transition-kNN: windowed item-to-item transitions.

    count[i, j] = sum over training pairs (i before j, d <= window events apart) of decay^(d - 1)
    score[j]    = popularity[j]^power * sum over the history's last events i of query_decay^(age of i) * count[i, j]

Sparse throughout: never V x V.

Dims: B users, V items, K candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import flat_items, ranges
from recsys.models.floors.columns import columns

_ENTRIES_AT_ONCE = 20_000_000

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TransitionConfig:
    """Settings of the transition count; the defaults are good on many logs without tuning."""

    window: int = 5  # events after an item that count as its successors
    decay: float = 0.8  # weight lost per further event between the two
    query_last: int = 7  # events of the history that are asked
    query_decay: float = 0.75  # weight lost per event of age
    popularity_power: float = -0.3  # below 0 favours rare items

    def __post_init__(self) -> None:
        for name in ("window", "query_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted at least 1")
        for name in ("decay", "query_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a share above 0, at most 1")


class TransitionKNN:
    """Scorer: items that followed the last events of the history in training."""

    def __init__(
        self, config: TransitionConfig, row_start: Integers, successors: Integers, weights: Floats, popularity: Integers
    ) -> None:
        """Wrap counted transitions.

        Args:
            config: how they are asked.
            row_start: (V+2,) int64; successors of item i are successors[row_start[i]:row_start[i+1]].
            successors: (pairs,) int64 item indices. weights: (pairs,) float64, their counts.
            popularity: (V+1,) int64 training events.
        """
        self.config, self.row_start, self.successors = config, row_start, successors
        self.max_len = config.query_last
        power = np.maximum(popularity, 1).astype(np.float64) ** config.popularity_power
        self.weights = weights * power[successors]
        self.num_items = len(popularity) - 1

    @classmethod
    def fit(cls, dataset: PreparedDataset, config: TransitionConfig | None = None) -> "TransitionKNN":
        """Transitions of the training part."""
        config = TransitionConfig() if config is None else config
        V = dataset.num_items
        train = dataset.train_slices()
        keys, weights = _count_pairs(flat_items(train), np.repeat(np.arange(len(train)), train.lengths), V, config)
        row_start = np.searchsorted(keys, np.arange(V + 2, dtype=np.int64) * (V + 1))
        return cls(config, row_start, keys % (V + 1), weights, dataset.train_counts())

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float64 with -inf in column 0, or (B, K) for `candidates`; 0 where no transition leads."""
        B, width = len(batch.lengths), self.num_items + 1
        row, item, weight = self._asked(batch)
        result = np.zeros(B * width)
        reach = self.row_start[item + 1] - self.row_start[item]
        for part in _parts(reach):
            entry = ranges(self.row_start[item[part]], self.row_start[item[part] + 1])
            cell = np.repeat(row[part] * width, reach[part]) + self.successors[entry]
            gain = np.repeat(weight[part], reach[part]) * self.weights[entry]
            result += np.bincount(cell, weights=gain, minlength=B * width)
        scores = torch.from_numpy(result.reshape(B, width))
        scores[:, 0] = -torch.inf
        return columns(scores, candidates, batch)

    def _asked(self, batch: JaggedBatch) -> tuple[Integers, Integers, Floats]:
        """The last events of each history: row, item and weight of each, flat."""
        lengths = np.array(batch.lengths, dtype=np.int64)
        taken = np.minimum(lengths, self.config.query_last)
        row = np.repeat(np.arange(len(lengths)), taken)
        end = np.cumsum(lengths)
        position = ranges(end - taken, end)
        age = np.repeat(end, taken) - 1 - position  # 0 for the last event
        item = batch.values.cpu().numpy()[position]
        return row, item, self.config.query_decay ** age.astype(np.float64)


def _count_pairs(items: Integers, owner: Integers, num_items: int, config: TransitionConfig) -> tuple[Integers, Floats]:
    """Distinct pairs as ascending keys i * (V+1) + j, and the decayed count of each."""
    packed = []
    for distance in range(1, min(config.window, len(items) - 1) + 1):
        is_pair = owner[distance:] == owner[:-distance]
        pair = items[:-distance][is_pair] * (num_items + 1) + items[distance:][is_pair]
        packed.append(pair * config.window + (distance - 1))
    flat = np.sort(np.concatenate(packed)) if packed else np.empty(0, dtype=np.int64)
    if len(flat) == 0:
        return flat, np.empty(0)
    keys, distances = np.divmod(flat, config.window)
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    weight = config.decay ** np.arange(config.window, dtype=np.float64)
    return keys[first], np.add.reduceat(weight[distances], first)


def _parts(reach: Integers) -> Iterator[slice]:
    """Runs of rows that reach at most _ENTRIES_AT_ONCE entries together, at least one row each."""
    ends, first, done = np.cumsum(reach), 0, 0
    while first < len(ends):
        last = max(int(np.searchsorted(ends, done + _ENTRIES_AT_ONCE, side="right")), first + 1)
        yield slice(first, last)
        first, done = last, int(ends[last - 1])

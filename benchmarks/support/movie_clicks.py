"""ML-1M as examples of a click model: who took what after what, beside items that were drawn.

The set has an order but no times, so the split is positional: of each user's events the last tenth is tested, all
before are trained on, and training sees events of other users that came later. Beside each event stands one item drawn
uniformly from those that the user never took, in training or test: the labels are `sampled`.

Dims: N examples, L columns of history.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch

from recsys.features.click_batch import NO_ID, ClickBatch

Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class MovieClicks:
    """Events by user, in order, and where training ends.

    Attributes:
        users, items: (E,) int64 raw ids of each event.
        history: (E, L) int64, the items that the user took before, the latest first; -1 where there is none.
        is_test: (E,) bool; is_trained: (E,) bool.
        num_users, num_items: different ones.
    """

    users: Ids
    items: Ids
    history: Ids
    is_test: "np.ndarray[Any, np.dtype[np.bool_]]"
    is_trained: "np.ndarray[Any, np.dtype[np.bool_]]"

    @property
    def num_users(self) -> int:
        """Different ones."""
        return len(np.unique(self.users))

    @property
    def num_items(self) -> int:
        """Different ones."""
        return len(np.unique(self.items))

    def popularity(self, items: Ids) -> Ids:
        """(N,) how many training events each item has."""
        known, counts = np.unique(self.items[self.is_trained], return_counts=True)
        places = np.minimum(np.searchsorted(known, items), len(known) - 1)
        return np.where(known[places] == items, counts[places], 0)

    def test(self) -> ClickBatch:
        """The test examples, the same at every call: user, item, history."""
        return self._examples(np.flatnonzero(self.is_test), np.random.default_rng([0, 1]))

    def epoch(self, seed: int, number: int) -> ClickBatch:
        """The training examples of an epoch, shuffled, their negatives drawn anew."""
        generator = np.random.default_rng([seed, number])
        batch = self._examples(np.flatnonzero(self.is_trained), generator)
        return batch[torch.from_numpy(generator.permutation(len(batch)))]

    def _examples(self, events: Ids, generator: np.random.Generator) -> ClickBatch:
        events = np.repeat(events, 2)
        items, labels = self.items[events], np.tile(np.array([1, 0], dtype=np.float32), len(events) // 2)
        items[1::2] = self._unseen(self.users[events[1::2]], generator)
        ids = np.column_stack([self.users[events], items, self.history[events]])
        return ClickBatch(torch.from_numpy(ids), torch.from_numpy(labels))

    def _unseen(self, users: Ids, generator: np.random.Generator) -> Ids:
        """(N,) an item for each user that he never took."""
        all_users, all_items = np.unique(self.users), np.unique(self.items)
        taken = np.zeros((len(all_users), len(all_items)), dtype=bool)
        taken[np.searchsorted(all_users, self.users), np.searchsorted(all_items, self.items)] = True
        rows = np.searchsorted(all_users, users)
        drawn = generator.integers(0, len(all_items), len(users))
        while (again := np.flatnonzero(taken[rows, drawn])).size:
            drawn[again] = generator.integers(0, len(all_items), len(again))
        found: Ids = all_items[drawn]
        return found


def read_movie_clicks(file: Path, *, history: int, held_out: str = "test", num_users: int | None = None) -> MovieClicks:
    """The events of ML-1M.

    Args:
        file: sequences.parquet, columns user_id, item_id, position.
        history: L.
        held_out: test: the last tenth of each user's events is tested; validation: the tenth before it, and the last
            one is left out.
        num_users: the first so many alone.

    Raises:
        ValueError: a user took all items, so that none is left to be drawn beside his.
    """
    frame = polars.read_parquet(file).sort("user_id", "position")
    users, items = (frame[name].cast(polars.Int64).to_numpy() for name in ("user_id", "item_id"))
    if num_users is not None:
        is_kept = np.isin(users, np.unique(users)[:num_users])
        users, items = users[is_kept], items[is_kept]
    _, starts, lengths = np.unique(users, return_index=True, return_counts=True)
    of_user = np.unique(np.column_stack([users, items]), axis=0)[:, 0]
    if np.unique(of_user, return_counts=True)[1].max() == len(np.unique(items)):
        raise ValueError(f"of {len(starts)} users one took all {len(np.unique(items))} items; wanted one he never took")
    place = np.arange(len(users)) - np.repeat(starts, lengths)
    past = (np.column_stack([np.arange(len(users)) - n for n in range(1, history + 1)])).clip(0)
    has_past = place[:, None] >= np.arange(1, history + 1)
    share = (place + 1) / np.repeat(lengths, lengths)
    until = {"validation": 0.8, "test": 0.9}[held_out]
    return MovieClicks(
        users=users,
        items=items,
        history=np.where(has_past, items[past], NO_ID),
        is_test=(share > until + 1e-9) & (share <= until + 0.1 + 1e-9),
        is_trained=share <= until + 1e-9,
    )


def in_batches(batch: ClickBatch, size: int) -> Iterator[ClickBatch]:
    """Parts of so many examples; the last is smaller."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]

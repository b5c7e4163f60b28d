"""Which items a sampled loss sets against the targets. Every draw comes from the generator and nothing else.

    draw_distinct   K distinct items, uniformly: one list for the whole batch
    draw_unseen     K distinct items a sequence, uniformly over those that its user has not
    draw_rows       K items a row, uniformly and with replacement
    Mixture         K items with replacement from q_j = (1 - uniform_share) count_j / total + uniform_share / V

Items are counted from 0 here, as the rows of a loss's weight are.

Dims: N rows, G sequences, K negatives, V items.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import offsets_of, ranges


def draw_distinct(num_items: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """(K,) int64 distinct items out of `num_items`, uniformly; fewer where there are fewer."""
    return torch.randperm(num_items, generator=generator)[:num_negatives].clone()


def draw_rows(num_rows: int, num_items: int, num_negatives: int, generator: torch.Generator) -> Tensor:
    """(N, K) int64 items, each drawn uniformly for itself."""
    return torch.randint(num_items, (num_rows, num_negatives), generator=generator)


def draw_unseen(
    seen: np.ndarray, lengths: np.ndarray, num_items: int, num_negatives: int, generator: torch.Generator
) -> Tensor:
    """(G, K) int64 distinct items of each sequence, uniformly over those it has not seen; -1 where too few are left.

    All sequences read one random order of the items, each from a random place on, and leave out what they have seen:
    any K unseen items are equally likely, and no catalogue is drawn for each.

    Args:
        seen: (S,) int64, items of the first sequence, then of the second, …; repeats are allowed.
        lengths: (G,) int64, how many of `seen` belong to each sequence.
        num_items: V.
        num_negatives: K.
        generator: CPU generator.
    """
    order = torch.randperm(num_items, generator=generator).numpy()
    start = torch.randint(num_items, (len(lengths),), generator=generator).numpy()
    place = np.empty(num_items, dtype=np.int64)
    place[order] = np.arange(num_items)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    distance = (place[seen] - start[sequence]) % num_items
    width = width_of_search(distance, sequence, len(lengths), num_items, num_negatives)
    is_unseen = np.ones((len(lengths), width), dtype=bool)
    is_unseen[sequence[distance < width], distance[distance < width]] = False
    rank = np.cumsum(is_unseen, axis=1)
    taken_by, at = np.nonzero(is_unseen & (rank <= num_negatives))
    negatives = np.full((len(lengths), num_negatives), -1, dtype=np.int64)
    negatives[taken_by, rank[taken_by, at] - 1] = order[(start[taken_by] + at) % num_items]
    return torch.from_numpy(negatives)


def width_of_search(
    distance: np.ndarray, sequence: np.ndarray, num_sequences: int, num_items: int, num_negatives: int
) -> int:
    """How many places from its start hold K unseen items of every sequence; V where none do.

    K and as many as it has seen within them, so not its whole history.

    Args:
        distance: (S,) int64, places from the start of its sequence to each seen item.
        sequence: (S,) int64, to which sequence it belongs.
        num_sequences, num_items, num_negatives: G, V, K.
    """
    width, wider = 0, min(num_items, num_negatives)
    while width < wider:
        width = wider
        met = np.bincount(sequence[distance < width], minlength=num_sequences)
        wider = min(num_items, num_negatives + int(met.max(initial=0)))
    return width


class Mixture:
    """Popular and uniform items mixed: `log_q` is the exact log-probability of one draw."""

    def __init__(self, counts: np.ndarray, uniform_share: float) -> None:
        """Counts (V,) int64 of each item in the training part; uniform_share in (0, 1]."""
        q = np.full(len(counts), uniform_share / len(counts))
        q += (1.0 - uniform_share) * counts / max(1, int(counts.sum()))
        q /= q.sum()
        self.log_q = torch.from_numpy(np.log(q)).float()
        self._cumulative = torch.from_numpy(np.cumsum(q))

    def draw(self, num_negatives: int, generator: torch.Generator) -> Tensor:
        """(K,) int64 items, with replacement."""
        at = torch.rand(num_negatives, generator=generator, dtype=torch.float64)
        return torch.searchsorted(self._cumulative, at, right=True).clamp(max=len(self._cumulative) - 1)


class TrainingItems:
    """Every user's items of the training part, read from the dataset's files when they are asked for."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._slices = dataset.train_slices()
        self._row = np.full(dataset.num_users + 1, -1, dtype=np.int64)
        self._row[self._slices.user] = np.arange(len(self._slices))

    def of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items (S,) int64 counted from 0, those of the first user, then of the second, …; and their numbers (G,).

        Args:
            users: (G,) int64 user indices.

        Raises:
            ValueError: a user is not one of the dataset's.
        """
        if len(users) and (users.min() < 1 or users.max() >= len(self._row)):
            wrong = int(users[(users < 1) | (users >= len(self._row))][0])
            raise ValueError(f"batch.users holds {wrong}; wanted 1 to {len(self._row) - 1}, the users of the dataset")
        rows, slices = self._row[users], self._slices
        start, end, shard = slices.start[rows], slices.end[rows], slices.shard[rows]
        lengths = end - start
        items = np.empty(offsets_of(lengths)[-1], dtype=np.int64)
        position, shard_of_item = ranges(start, end), np.repeat(shard, lengths)
        for number in np.unique(shard):
            mine = shard_of_item == number
            items[mine] = slices.shards[number].items[position[mine]]
        return items - 1, lengths

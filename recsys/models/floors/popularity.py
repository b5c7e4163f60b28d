"""Popularity: the number of events of each item, whatever the history."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors.columns import columns

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Popularity:
    """Scorer: the number of training events of each item, whatever the history."""

    max_len = 1

    def __init__(self, counts: Integers) -> None:
        """counts: (V+1,) events of each item in the training part."""
        self.counts = np.asarray(counts, dtype=np.int64)

    @classmethod
    def fit(cls, dataset: PreparedDataset) -> "Popularity":
        """Popularity in the training part."""
        return cls(dataset.train_counts())

    @property
    def constant(self) -> Floats:
        """(V+1,): the scores of every history."""
        return self.counts.astype(np.float64)

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float64 counts with -inf in column 0, or (B, K) for `candidates`."""
        row = torch.from_numpy(self.constant)
        row[0] = -torch.inf
        return columns(row.expand(len(batch.lengths), -1), candidates, batch)

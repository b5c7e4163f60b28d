"""Recent popularity: the number of training events of each item, each event halving in weight with its age.

    score[j] = sum over training events of j of 2^(-age / half_life)

unit="events": the age of an event is the number of training events that its user had after it. Any order will do, and
every history gets the same scores.
unit="seconds": the age is counted back from the moment of the question, and events at or after that moment do not
count, so that the future stays unseen under every split. Without that moment all training events count. The reference
is the last event before the question: halving all scores alike changes no order, and weights do not vanish long after
the training part.

Dims: B users, V items, E training events, K candidates.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import flat_items, ranges
from recsys.models.floors.columns import columns

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RecentConfig:
    """How fast an event is forgotten."""

    half_life: float = 10.0
    unit: Literal["events", "seconds"] = "events"

    def __post_init__(self) -> None:
        if not 0 < self.half_life < float("inf"):
            raise ValueError(f"half_life={self.half_life}: wanted above 0, in {self.unit}")
        if self.unit not in ("events", "seconds"):
            raise ValueError(f"unit={self.unit!r}: wanted events or seconds")


class RecentPopularity:
    """Scorer: what was popular lately."""

    max_len = 1

    def __init__(
        self, config: RecentConfig, num_items: int, constant: Floats | None, items: Integers, times: Integers
    ) -> None:
        """Wrap training events; see `fit`.

        Args:
            config: how fast they are forgotten.
            num_items: V.
            constant: (V+1,) scores of every history, where the unit is events; items and times are empty then.
            items: (E,) items, oldest event first. times: (E,) int64 us, ascending.
        """
        self.config, self.num_items, self.constant, self.items, self.times = config, num_items, constant, items, times

    @classmethod
    def fit(cls, dataset: PreparedDataset, config: RecentConfig | None = None) -> "RecentPopularity":
        """Recent popularity in the training part.

        Raises:
            DataError: a half-life in seconds for data without times.
        """
        config = RecentConfig() if config is None else config
        train, V, nothing = dataset.train_slices(), dataset.num_items, np.empty(0, np.int64)
        items = flat_items(train)
        if config.unit == "events":
            age = np.repeat(train.lengths, train.lengths) - 1 - ranges(np.zeros_like(train.lengths), train.lengths)
            constant = np.bincount(items, weights=np.exp2(-age / config.half_life), minlength=V + 1)
            return cls(config, V, constant.astype(np.float64), nothing, nothing)
        if dataset.order != "time":
            raise DataError(
                f"{dataset.path}: ordered by {dataset.order}, so a half-life in seconds has no meaning; "
                "give recent popularity unit=events, or prepare data with times"
            )
        times = np.empty(len(items), np.int64)
        position, shard = ranges(train.start, train.end), np.repeat(train.shard, train.lengths)
        for number, part in enumerate(train.shards):
            times[shard == number] = part.times[position[shard == number]]  # type: ignore[index]  # order is time
        order = np.argsort(times, kind="stable")
        return cls(config, V, None, items[order], times[order])

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float64 with -inf in column 0, or (B, K) for `candidates`."""
        B = len(batch.lengths)
        if self.constant is not None:
            rows = torch.from_numpy(self.constant).expand(B, -1).clone()
        else:
            rows = self._until(None if batch.query_times is None else batch.query_times.cpu().numpy(), B)
        rows[:, 0] = -torch.inf
        return columns(rows, candidates, batch)

    def _until(self, moments: Integers | None, B: int) -> Tensor:
        """(B, V+1): recent popularity just before each moment, or after all training."""
        known = np.full(B, len(self.times)) if moments is None else np.searchsorted(self.times, moments, side="left")
        rows = torch.zeros(B, self.num_items + 1, dtype=torch.float64)
        state, done = np.zeros(self.num_items + 1), 0
        for b in np.argsort(known, kind="stable"):
            if known[b] > done:
                now = self.times[known[b] - 1]
                state *= self._weight(now - self.times[max(done - 1, 0)])
                fresh = slice(done, known[b])
                state += np.bincount(self.items[fresh], self._weight(now - self.times[fresh]), len(state))
                done = int(known[b])
            rows[b] = torch.from_numpy(state)
        return rows

    def _weight(self, age_us: Integers) -> Floats:
        return np.asarray(np.exp2(-age_us / (1e6 * self.config.half_life)))

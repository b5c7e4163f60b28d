"""EASE: the linear map between items that reproduces each user's set best, in closed form.

    G = X^T X            X: users x items, 1 where the user has the item (of each user the last 500 training events)
    P = (G + l2 * I)^-1
    B[i, j] = -P[i, j] / P[j, j],  B[j, j] = 0
    score[j] = max(popularity[j], 1)^popularity_power
             * sum over the history's last events i of query_decay^(age of i) * B[i, j]

Paper: Steck 2019, arXiv:1905.03375. We differ: recent events of the history may weigh more (query_last, query_decay),
and rare items may be favoured (popularity_power); query_decay=1 and popularity_power=0 are the paper's.
Memory: 10 * V^2 bytes while fitting, 4 * V^2 afterwards, float32. Time grows with V^3.

Dims: B users, V items, K candidates.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors.asked import asked_events
from recsys.models.floors.columns import columns
from recsys.models.floors.inverse import spd_inverse
from recsys.models.floors.training_events import TrainingEvents

MAX_ITEMS = 30_000
_BYTES_PER_PAIR = 10


@dataclass(frozen=True, kw_only=True)
class EaseConfig:
    """Settings of EASE."""

    l2: float = 300.0  # above 0; more trusts rare pairs less
    query_last: int = 500  # events of the history that are asked
    query_decay: float = 1.0  # weight lost per event of age
    popularity_power: float = 0.0  # below 0 favours rare items

    def __post_init__(self) -> None:
        if not 0 < self.l2 < float("inf"):
            raise ValueError(f"l2={self.l2}: wanted above 0")
        if self.query_last < 1:
            raise ValueError(f"query_last={self.query_last}: wanted at least 1")
        if not 0 < self.query_decay <= 1:
            raise ValueError(f"query_decay={self.query_decay}: wanted a share above 0, at most 1")
        if not -4 <= self.popularity_power <= 4:
            raise ValueError(f"popularity_power={self.popularity_power}: wanted a power from -4 to 4")


class Ease:
    """Scorer: the linear map from what a user has to what they would have."""

    def __init__(self, config: EaseConfig, item_map: Tensor, popularity: Tensor) -> None:
        """Wrap a fitted map.

        Args:
            config: how it is asked.
            item_map: (V+1, V+1) float32; entry (i, j) is what item i says for item j; row and column 0 are 0.
            popularity: (V+1,) int64 training events.
        """
        self.config, self.item_map, self.max_len = config, item_map, config.query_last
        self.factor = popularity.clamp_min(1).double() ** config.popularity_power

    @classmethod
    def fit(
        cls,
        dataset: PreparedDataset,
        config: EaseConfig | None = None,
        events: TrainingEvents | None = None,
        item_map: Tensor | None = None,
    ) -> "Ease":
        """The map of the training part.

        Args:
            dataset: at most MAX_ITEMS items.
            config: settings.
            events: spares reading the training part again.
            item_map: `fit_item_map` of the same training part and l2, spares fitting it again.

        Raises:
            DataError: more than MAX_ITEMS items, or not enough memory.
        """
        config = EaseConfig() if config is None else config
        why = why_not(dataset)
        if why is not None:
            raise DataError(f"{dataset.path}: {why}")
        events = TrainingEvents.of(dataset) if events is None else events
        if item_map is None:
            item_map = fit_item_map(events, config.l2)
        return cls(config, item_map, torch.from_numpy(events.popularity))

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        """(B, V+1) float32 with -inf in column 0, or (B, K) for `candidates`; may be negative."""
        row, item, weight = asked_events(batch, self.config.query_last, self.config.query_decay)
        start = torch.from_numpy(np.searchsorted(row, np.arange(len(batch.lengths))))
        weights = torch.from_numpy(weight).float()
        scores = embedding_bag(torch.from_numpy(item), self.item_map, start, mode="sum", per_sample_weights=weights)
        scores *= self.factor.float()
        scores[:, 0] = -torch.inf
        return columns(scores, candidates, batch)


def why_not(dataset: PreparedDataset) -> str | None:
    """Why EASE cannot be fitted on this dataset here, with the remedy; None where it can."""
    V = dataset.num_items
    if V > MAX_ITEMS:
        return (
            f"ease takes at most {MAX_ITEMS:,} items, here are {V:,}; leave it out (--only other floors), or prepare "
            "with filters.min_item_events"
        )
    needed, free = _BYTES_PER_PAIR * (V + 1) ** 2, _free_bytes()
    if free is not None and needed > free:
        return (
            f"ease needs {needed / 2**30:.1f} GiB for {V:,} items, {free / 2**30:.1f} GiB are free; leave it out "
            "(--only other floors), or take a larger machine"
        )
    return None


def fit_item_map(events: TrainingEvents, l2: float) -> Tensor:
    """(V+1, V+1) float32: B of the module's docstring, with an empty row and column for padding."""
    gram = events.together()
    gram.diagonal().add_(l2)
    inverse = spd_inverse(gram)
    inverse /= -inverse.diagonal().clone()
    inverse.fill_diagonal_(0.0)
    return inverse


def _free_bytes() -> int | None:
    """Memory that can be had without swapping, where the system tells (Linux)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_AVPHYS_PAGES" in names:
            return int(os.sysconf("SC_AVPHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))
        return None

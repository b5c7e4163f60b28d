"""Transition-kNN: windowed item-to-item transitions.

    count[i, j] = sum over training pairs (i before j, d <= window events apart) of decay^(d - 1)
                + backward * the same for pairs (j before i)
    score[j]    = popularity[j]^popularity_power
                * sum over the history's last events i of
                  query_decay^(age of i) * count[i, j] / popularity[i]^source_power

Dims: B users, V items, K candidates.
"""

from dataclasses import dataclass

import numpy as np

from recsys.features.dataset import PreparedDataset
from recsys.models.floors.link_scorer import LinkPart, Links, LinkScorer
from recsys.models.floors.training_events import TrainingEvents, merged


@dataclass(frozen=True, kw_only=True)
class TransitionConfig:
    """Settings of the transition count; the defaults are good on many logs without tuning."""

    window: int = 5  # events after an item that count as its successors
    decay: float = 0.8  # weight lost per further event between the two
    query_last: int = 7  # events of the history that are asked
    query_decay: float = 0.75  # weight lost per event of age
    popularity_power: float = -0.3  # below 0 favours rare items
    source_power: float = 0.0  # above 0 a popular item of the history says less; 1: shares instead of counts
    backward: float = 0.0  # weight of what came before an item, beside what came after it

    def __post_init__(self) -> None:
        for name in ("window", "query_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted at least 1")
        for name in ("decay", "query_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a share above 0, at most 1")
        for name in ("popularity_power", "source_power"):
            if not -4 <= getattr(self, name) <= 4:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a power from -4 to 4")
        if not 0 <= self.backward <= 1:
            raise ValueError(f"backward={self.backward}: wanted a share from 0 to 1")


class TransitionKNN(LinkScorer):
    """Scorer: items that followed the last events of the history in training."""

    def __init__(self, config: TransitionConfig, links: Links) -> None:
        """Wrap counted transitions; see `fit`."""
        super().__init__((LinkPart(links, config.query_last, config.query_decay),))
        self.config = config

    @classmethod
    def fit(
        cls, dataset: PreparedDataset, config: TransitionConfig | None = None, events: TrainingEvents | None = None
    ) -> "TransitionKNN":
        """Transitions of the training part; `events` spares reading it again."""
        config = TransitionConfig() if config is None else config
        events = TrainingEvents.of(dataset) if events is None else events
        width = dataset.num_items + 1
        keys, weights = events.followers(config.window, config.decay)
        if config.backward > 0:
            source, target = np.divmod(keys, width)
            keys, weights = merged([(keys, weights), (target * width + source, config.backward * weights)])
        source, target = np.divmod(keys, width)
        popularity = np.maximum(events.popularity, 1).astype(np.float64)
        factor = popularity[target] ** config.popularity_power * popularity[source] ** -config.source_power
        return cls(config, Links(keys, weights * factor, dataset.num_items))

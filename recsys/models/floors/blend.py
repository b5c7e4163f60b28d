"""Blend: transition-kNN and item-kNN, added.

    score[j] = (1 - share) * transition[j] / t + share * item[j] / n

t and n are the mean weight of an item's links in each, so that a share means the same on every log. Counting alone.

Dims: V items.
"""

from dataclasses import dataclass, field

from recsys.features.dataset import PreparedDataset
from recsys.models.floors.item_knn import ItemKNN, ItemKNNConfig
from recsys.models.floors.link_scorer import LinkPart, LinkScorer
from recsys.models.floors.training_events import TrainingEvents
from recsys.models.floors.transition_knn import TransitionConfig, TransitionKNN


@dataclass(frozen=True, kw_only=True)
class BlendConfig:
    """Settings of both, and the share of item-kNN."""

    share: float = 0.3  # of item-kNN
    transition: TransitionConfig = field(default_factory=TransitionConfig)
    item: ItemKNNConfig = field(default_factory=ItemKNNConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: wanted a share from 0 to 1")


class Blend(LinkScorer):
    """Scorer: what followed the last events of the history in training, and what stood beside them."""

    def __init__(self, config: BlendConfig, transition: TransitionKNN, item: ItemKNN) -> None:
        """Add two fitted floors of the same dataset."""
        shares = (1 - config.share, config.share)
        parts = zip((*transition.parts, *item.parts), shares, strict=True)
        super().__init__(
            tuple(LinkPart(part.links, part.last, part.decay, _scaled(part, share)) for part, share in parts)
        )
        self.config = config

    @classmethod
    def fit(
        cls, dataset: PreparedDataset, config: BlendConfig | None = None, events: TrainingEvents | None = None
    ) -> "Blend":
        """Both, fitted on the training part; `events` spares reading it again."""
        config = BlendConfig() if config is None else config
        events = TrainingEvents.of(dataset) if events is None else events
        transition = TransitionKNN.fit(dataset, config.transition, events)
        return cls(config, transition, ItemKNN.fit(dataset, config.item, events))


def _scaled(part: LinkPart, share: float) -> float:
    total = float(part.links.weights.sum())
    return share * part.links.num_items / total if total > 0 else share

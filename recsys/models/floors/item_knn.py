"""Item-kNN: items that stand beside each other in the sequences of many users.

    together[i, j]   = training pairs of i and j at most `window` events apart, either before the other; without a
                       window, the users who have both (of each user the last 500 training events)
    similarity[i, j] = together[i, j] / (n[i]^source_power * n[j]^target_power + shrink)      n: training events
    score[j]         = sum over the history's last events i of query_decay^(age of i) * similarity[i, j],
                       j among the `neighbours` most similar items of i

Powers of 1/2 and no window give the cosine of user sets (Sarwar et al. 2001, doi 10.1145/371920.372071); n counts
events, which are users where nobody repeats. Of equally similar items the lower index is the nearer neighbour.

Dims: V items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.features.dataset import PreparedDataset
from recsys.models.floors.link_scorer import LinkPart, Links, LinkScorer
from recsys.models.floors.training_events import Floats, Integers, TrainingEvents


@dataclass(frozen=True, kw_only=True)
class ItemKNNConfig:
    """Settings of item-kNN."""

    window: int | None = None  # events between two that stand together, at most; None: anywhere in one user's set
    neighbours: int = 200  # most similar items that are kept of each item
    shrink: float = 10.0  # doubt about pairs that rest on few users
    source_power: float = 0.5  # above 0 a popular item of the history says less
    target_power: float = 0.5  # above 0 a popular item is recommended less
    query_last: int = 20  # events of the history that are asked
    query_decay: float = 0.8  # weight lost per event of age

    def __post_init__(self) -> None:
        for name in ("window", "neighbours", "query_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: wanted at least 1")
        if not 0 < self.query_decay <= 1:
            raise ValueError(f"query_decay={self.query_decay}: wanted a share above 0, at most 1")
        if not 0 <= self.shrink < float("inf"):
            raise ValueError(f"shrink={self.shrink}: wanted at least 0")
        for name in ("source_power", "target_power"):
            if not -4 <= getattr(self, name) <= 4:
                raise ValueError(f"{name}={getattr(self, name)}: wanted a power from -4 to 4")


class ItemKNN(LinkScorer):
    """Scorer: neighbours of the last events of the history."""

    def __init__(self, config: ItemKNNConfig, links: Links) -> None:
        """Wrap counted neighbours; see `fit`."""
        super().__init__((LinkPart(links, config.query_last, config.query_decay),))
        self.config = config

    @classmethod
    def fit(
        cls, dataset: PreparedDataset, config: ItemKNNConfig | None = None, events: TrainingEvents | None = None
    ) -> "ItemKNN":
        """Neighbours in the training part; `events` spares reading it again."""
        config = ItemKNNConfig() if config is None else config
        events = TrainingEvents.of(dataset) if events is None else events
        keys, together = events.neighbours(config.window)
        source, target = np.divmod(keys, dataset.num_items + 1)
        popularity = np.maximum(events.popularity, 1).astype(np.float64)
        norm = popularity[source] ** config.source_power * popularity[target] ** config.target_power
        similarity = together / (norm + config.shrink)
        kept = _nearest(source, similarity, config.neighbours)
        return cls(config, Links(keys[kept], similarity[kept], dataset.num_items))


def _nearest(source: Integers, similarity: Floats, neighbours: int) -> npt.NDArray[np.bool_]:
    """Whether each entry is among the most similar of its source; sources stand in order."""
    keep = np.ones(len(source), bool)
    start = np.flatnonzero(np.diff(source, prepend=-1))
    end = np.append(start[1:], len(source))
    for row in np.flatnonzero(end - start > neighbours):
        mine = slice(start[row], end[row])
        keep[mine][np.argsort(-similarity[mine], kind="stable")[neighbours:]] = False
    return keep

"""Settings into fitted floors of one dataset; what the next fit can use again is kept."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recsys import config as configs
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import (
    Blend,
    BlendConfig,
    Ease,
    EaseConfig,
    ItemKNN,
    ItemKNNConfig,
    Popularity,
    RecentConfig,
    RecentPopularity,
    TransitionConfig,
    TransitionKNN,
)
from recsys.models.floors.ease import fit_item_map, why_not
from recsys.models.floors.training_events import TrainingEvents
from recsys.models.protocols import Scorer
from recsys.pipelines.floors.families import FAMILIES


class Fitter:
    """Fits floors by family and settings."""

    def __init__(self, dataset: PreparedDataset, window: int) -> None:
        """window: of the widest transition count that will be asked; pairs are counted once for all below it."""
        self.dataset = dataset
        self.events = TrainingEvents.of(dataset).prepare(window)
        self._item_maps: dict[float, Tensor] = {}
        self._blended: dict[tuple[TransitionConfig, ItemKNNConfig], tuple[TransitionKNN, ItemKNN]] = {}

    def fit(self, family: str, settings: Mapping[str, Any]) -> Scorer:
        """The floor of this family with these settings.

        Raises:
            ConfigError: settings that the family does not know, or refuses.
            DataError: the data cannot carry it: too many items for EASE, a half-life in seconds without times.
            ValueError: an unknown family.
        """
        dataset, where = self.dataset, f"{family}: "
        if family == "popularity":
            return Popularity(self.events.popularity)
        if family == "recent-popularity":
            return RecentPopularity.fit(dataset, configs.load(RecentConfig, settings, where))
        if family == "transition-knn":
            return TransitionKNN.fit(dataset, configs.load(TransitionConfig, settings, where), self.events)
        if family == "item-knn":
            return ItemKNN.fit(dataset, configs.load(ItemKNNConfig, settings, where), self.events)
        if family == "blend":
            return self._blend(configs.load(BlendConfig, settings, where))
        if family == "ease":
            config = configs.load(EaseConfig, settings, where)
            return Ease.fit(dataset, config, self.events, self._item_map(config.l2))
        raise ValueError(f"family={family!r}: wanted one of {', '.join(FAMILIES)}")

    def _blend(self, config: BlendConfig) -> Blend:
        """The latest two are kept: trials that differ only in the share add them up anew."""
        if (config.transition, config.item) not in self._blended:
            pair = (
                TransitionKNN.fit(self.dataset, config.transition, self.events),
                ItemKNN.fit(self.dataset, config.item, self.events),
            )
            self._blended = {(config.transition, config.item): pair}
        return Blend(config, *self._blended[config.transition, config.item])

    def _item_map(self, l2: float) -> Tensor | None:
        """The latest map is kept: trials that differ only in how it is asked share it."""
        if l2 not in self._item_maps:
            self._item_maps.clear()
            if why_not(self.dataset) is not None:
                return None
            self._item_maps[l2] = fit_item_map(self.events, l2)
        return self._item_maps[l2]

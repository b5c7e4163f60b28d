"""What counting reaches: every figure stands above these. Fitted on the training part alone, on the CPU."""

from recsys.models.floors.blend import Blend, BlendConfig
from recsys.models.floors.ease import Ease, EaseConfig
from recsys.models.floors.item_knn import ItemKNN, ItemKNNConfig
from recsys.models.floors.popularity import Popularity
from recsys.models.floors.recent_popularity import RecentConfig, RecentPopularity
from recsys.models.floors.transition_knn import TransitionConfig, TransitionKNN

FLOOR_CLASSES = (Popularity, RecentPopularity, TransitionKNN, ItemKNN, Ease, Blend)

__all__ = [
    "FLOOR_CLASSES",
    "Blend",
    "BlendConfig",
    "Ease",
    "EaseConfig",
    "ItemKNN",
    "ItemKNNConfig",
    "Popularity",
    "RecentConfig",
    "RecentPopularity",
    "TransitionConfig",
    "TransitionKNN",
]

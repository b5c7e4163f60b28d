"""What counting reaches: every figure stands above these. Fitted on the training part alone, on the CPU."""

from recsys.models.floors.popularity import Popularity
from recsys.models.floors.transition_knn import TransitionConfig, TransitionKNN

__all__ = ["Popularity", "TransitionConfig", "TransitionKNN"]

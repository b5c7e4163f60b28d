"""The floors under every figure: popularity, and transition-kNN tuned on the validation part."""

from collections.abc import Callable, Mapping

from recsys.features.dataset import PreparedDataset
from recsys.models.floors import Popularity, TransitionConfig, TransitionKNN
from recsys.models.protocols import Scorer
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query

# In the order in which they are tried; of equal ones the first is kept.
TRANSITION_GRID: Mapping[str, TransitionConfig] = {
    "default": TransitionConfig(),
    "popular": TransitionConfig(popularity_power=0.0),
    "rare": TransitionConfig(popularity_power=-0.5),
    "markov": TransitionConfig(window=1, query_last=1, popularity_power=0.0),
    "short": TransitionConfig(window=2, decay=0.7, query_last=3, query_decay=0.6, popularity_power=0.0),
    "short, rare": TransitionConfig(window=2, decay=0.7, query_last=3, query_decay=0.6),
    "sharp": TransitionConfig(window=5, decay=0.6, query_last=5, query_decay=0.5, popularity_power=0.0),
    "long": TransitionConfig(window=10, decay=0.9, query_last=20, query_decay=0.9),
}


def fit_floors(dataset: PreparedDataset) -> dict[str, Scorer]:
    """The floors by name: `popularity` and `transition-knn`, fitted on the training part."""
    return {
        "popularity": Popularity.fit(dataset),
        "transition-knn": TransitionKNN.fit(dataset, tune_transition_knn(dataset)),
    }


def tune_transition_knn(
    dataset: PreparedDataset,
    grid: Mapping[str, TransitionConfig] = TRANSITION_GRID,
    *,
    observe: Callable[[str, float], None] | None = None,
) -> TransitionConfig:
    """The setting with the best NDCG@10 on the validation part, seen items left out.

    Args:
        dataset: where its validation part asks no question the first setting is returned, untuned.
        grid: named settings, at least one.
        observe: told the name and NDCG@10 of each setting.

    Raises:
        ValueError: an empty grid.
    """
    if not grid:
        raise ValueError("grid is empty; give at least one setting")
    queries = dataset.queries("valid")
    best, best_ndcg = next(iter(grid.values())), -1.0
    if len(queries) == 0:
        return best
    for name, config in grid.items():
        ranks = rank_targets(TransitionKNN.fit(dataset, config), dataset, queries)
        ndcg = float(metrics_per_query(ranks, queries.target_offsets, (10,))["ndcg@10"].mean())
        if observe is not None:
            observe(name, ndcg)
        if ndcg > best_ndcg:
            best, best_ndcg = config, ndcg
    return best

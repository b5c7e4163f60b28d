"""The floors that evaluation, demo and comparison put under every figure."""

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Queries
from recsys.models.protocols import Scorer
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.floors.families import MAX_WINDOW, NAMED, Settings
from recsys.pipelines.floors.fitter import Fitter
from recsys.pipelines.floors.ranking import rank_floor
from recsys.pipelines.floors.tuned import TunedFloors, read_floors

EASE_ITEMS = 5_000  # with more items, fitting EASE takes longer than evaluating a model


def fit_floors(dataset: PreparedDataset) -> dict[str, Scorer]:
    """The floors by name, fitted on the training part.

    With the settings of floors.json where it was tuned on this data and split; EASE on more than EASE_ITEMS items only
    if it is the best of them there. Else `popularity`, and `transition-knn` with the best of eight named settings on
    the validation part (the first where that part asks no question).

    Raises:
        DataError: floors.json is damaged, or its EASE cannot be fitted here.
    """
    tuned = _tuned(dataset)
    if tuned is not None:
        fitter = Fitter(dataset, MAX_WINDOW)
        return {family: fitter.fit(family, tuned.best[family]["settings"]) for family in _shown(dataset, tuned)}
    fitter = Fitter(dataset, max(config.window for config in NAMED.values()))
    settings = _best_named(fitter, dataset.queries("valid"))
    return {name: fitter.fit(name, settings) for name in ("popularity", "transition-knn")}


def describe_floors(dataset: PreparedDataset) -> str:
    """One line: which settings `fit_floors` takes, and how to tune them.

    Raises:
        DataError: floors.json is damaged.
    """
    command = f"recsys floors {dataset.path}"
    found = read_floors(dataset)
    if found is None:
        return f"floors: 8 settings; tune them by: {command}"
    if not found.is_of(dataset):
        return f"floors: 8 settings (floors.json was tuned on other data or cuts); tune them by: {command}"
    hidden = [family for family in found.families if family not in _shown(dataset, found)]
    note = f"; {', '.join(hidden)} left out here for its time, its figures stand in floors.json" if hidden else ""
    return f"floors: tuned, {found.random_trials} trials{note}"


def _tuned(dataset: PreparedDataset) -> TunedFloors | None:
    tuned = read_floors(dataset)
    return tuned if tuned is not None and tuned.is_of(dataset) else None


def _shown(dataset: PreparedDataset, tuned: TunedFloors) -> list[str]:
    is_ease_slow = dataset.num_items > EASE_ITEMS and tuned.best_family != "ease"
    return [family for family in tuned.families if family != "ease" or not is_ease_slow]


def _best_named(fitter: Fitter, queries: Queries) -> Settings:
    """The named setting with the best NDCG@10; of equal ones, and where nothing is asked, the first."""
    settings = [vars(config) for config in NAMED.values()]
    if len(queries) == 0:
        return settings[0]
    figures = []
    for one in settings:
        ranks = rank_floor(fitter.fit("transition-knn", one), fitter.dataset, queries)
        figures.append(float(metrics_per_query(ranks, queries.target_offsets, (10,))["ndcg@10"].mean()))
    return settings[figures.index(max(figures))]

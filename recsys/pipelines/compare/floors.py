"""The floors of a comparison: tuned on the validation part, each fitted with the settings it does best with there."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recsys.features.dataset import PreparedDataset
from recsys.models.protocols import Scorer
from recsys.pipelines.floors.fitter import Fitter
from recsys.pipelines.floors.tune import tune_floors


@dataclass(frozen=True)
class FittedFloors:
    """floors: by name. fit_s: seconds that each takes to count, its events read anew. tuning_s: of all trials.

    note: how they were tuned, and what was left out and why.
    """

    floors: dict[str, Scorer]
    fit_s: dict[str, float]
    tuning_s: float
    note: str


def tuned_floors(dataset: PreparedDataset, trials: int, observe: Callable[[dict[str, Any]], None]) -> FittedFloors:
    """The floors after `trials` random settings on the validation part; see `tune_floors`.

    Raises:
        DataError: the validation part asks no question.
        StorageError: the disk is full or failed.
    """
    tuned = tune_floors(dataset, trials, observe=observe)
    floors, seconds = {}, {}
    for family, best in tuned.best.items():
        began = time.perf_counter()
        floors[family] = Fitter(dataset, _window(family, best["settings"])).fit(family, best["settings"])
        seconds[family] = round(time.perf_counter() - began, 3)
    left_out = "".join(f"; without {family}: {why}" for family, why in tuned.left_out.items())
    note = f"the best of {len(tuned.trials)} settings on the validation part, {tuned.random_trials} of them random"
    return FittedFloors(floors, seconds, tuned.seconds, note + left_out)


def _window(family: str, settings: Mapping[str, Any]) -> int:
    """Of the transition count that these settings ask for; 1 where they ask for none."""
    asked = {"transition-knn": settings, "blend": settings.get("transition", {})}.get(family, {})
    return int(asked.get("window", 1))

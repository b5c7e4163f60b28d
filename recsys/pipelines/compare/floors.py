"""The floors of a comparison: tuned on the validation part, each fitted with the settings it does best with there."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.features.dataset import PreparedDataset
from recsys.models.protocols import Scorer
from recsys.pipelines.floors.families import Settings
from recsys.pipelines.floors.fitter import Fitter
from recsys.pipelines.floors.tune import tune_floors
from recsys.pipelines.floors.tuned import FILE, read_floors


@dataclass(frozen=True)
class FittedFloors:
    """floors, settings: by name. fit_s: seconds that each takes to count, its events read anew.

    tuning_s: of all trials. note: how they were tuned, and what was left out and why.
    """

    floors: dict[str, Scorer]
    settings: dict[str, Settings]
    fit_s: dict[str, float]
    tuning_s: float
    note: str


def tuned_floors(
    dataset: PreparedDataset, trials: int, folder: Path, observe: Callable[[dict[str, Any]], None]
) -> FittedFloors:
    """The floors after `trials` random settings on the validation part; see `tune_floors`.

    The dataset's own floors.json is taken where it is of the same data and split and as thorough; it is not written to
    unless `folder` is the dataset's.

    Args:
        dataset: its validation part asks questions.
        trials: random settings, at least 1.
        folder: where floors.json goes if the floors are tuned.
        observe: as for `tune_floors`.

    Raises:
        DataError: the validation part asks no question; a floors.json is damaged.
        StorageError: the disk is full or failed.
    """
    tuned = tune_floors(dataset, trials, observe=observe, folder=folder)
    floors, seconds = {}, {}
    for family, best in tuned.best.items():
        began = time.perf_counter()
        floors[family] = Fitter(dataset, _window(family, best["settings"])).fit(family, best["settings"])
        seconds[family] = round(time.perf_counter() - began, 3)
    left_out = "".join(f"; without {family}: {why}" for family, why in tuned.left_out.items())
    note = f"the best of {len(tuned.trials)} settings on the validation part, {tuned.random_trials} of them random"
    if folder != dataset.path and tuned == read_floors(dataset):
        note += f" (taken from {dataset.path / FILE})"
    settings = {family: best["settings"] for family, best in tuned.best.items()}
    return FittedFloors(floors, settings, seconds, tuned.seconds, note + left_out)


def _window(family: str, settings: Mapping[str, Any]) -> int:
    """Of the transition count that these settings ask for; 1 where they ask for none."""
    asked = {"transition-knn": settings, "blend": settings.get("transition", {})}.get(family, {})
    return int(asked.get("window", 1))

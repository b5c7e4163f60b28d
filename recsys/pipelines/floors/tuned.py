"""`floors.json` in a dataset's folder: the settings that a tuning found, every trial, and what they reach."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys import config as configs
from recsys.errors import ConfigError, DataError
from recsys.features.dataset import PreparedDataset
from recsys.files import storage_errors, write_json
from recsys.pipelines.floors.entries import fault_of_families, fault_of_trials
from recsys.pipelines.floors.families import turns

FILE = "floors.json"
FORMAT, FORMAT_VERSION = "recsys-floors", 1
_FULL_DISK = "free space and run the same command again"


@dataclass(frozen=True, kw_only=True)
class TunedFloors:
    """What `tune_floors` found.

    best: family -> {"settings": …, "valid": NDCG@10 of all validation questions}. test: family -> metric -> {"mean",
    "low", "high"}; differences: family -> metric -> paired difference to popularity, likewise. left_out: family -> why.
    trials: {"stage", "family", "settings", "n" questions, "ndcg@10", "seconds", "seed"} of each, in the order of the
    plan, then those of earlier tunings; a named one carries its "name". seed: of the latest tuning.
    random_trials: how many were drawn at random.
    """

    data_hash: str
    split_hash: str
    valid_protocol: str
    test_protocol: str
    seed: int
    random_trials: int
    families: list[str]
    left_out: dict[str, str]
    best: dict[str, dict[str, Any]]
    test: dict[str, dict[str, dict[str, float]]]
    differences: dict[str, dict[str, dict[str, float]]]
    seconds: float
    trials: list[dict[str, Any]] = field(repr=False)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def best_family(self) -> str:
        """The family with the best figure on the validation part; of equal ones the first."""
        return max(self.families, key=lambda family: float(self.best[family]["valid"]))

    def is_of(self, dataset: PreparedDataset) -> bool:
        """Whether these floors were tuned on this very data and split."""
        return (self.data_hash, self.split_hash) == (dataset.data_hash, dataset.split_hash)

    def seeded_trials(self) -> list[dict[str, Any]]:
        """The trials, each with its seed: files of an earlier version name it once for all."""
        return [{**trial, "seed": trial.get("seed", self.seed)} for trial in self.trials]

    def has_run(self, families: Sequence[str], trials: int, seed: int | None) -> bool:
        """Whether these families were given as many random trials as `trials` over them would; seed: None for any."""
        drawn = Counter(
            trial["family"]
            for trial in self.seeded_trials()
            if trial["stage"] == "random" and not trial["name"] and seed in (None, trial["seed"])
        )
        wanted = Counter(family for family, _ in turns(families, trials))
        return set(families) <= set(self.families) and wanted <= drawn

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all.

        Raises:
            InputError: the place cannot be written.
            StorageError: the disk is full or failed.
        """
        with storage_errors(path, _FULL_DISK):
            write_json(path, asdict(self))


def read_floors(dataset: PreparedDataset, folder: Path | None = None) -> TunedFloors | None:
    """The tuned floors in `folder`, of whichever data they are; None where none were tuned.

    Args:
        dataset: whose floors are meant.
        folder: the dataset's own by default.

    Raises:
        DataError: the file is damaged or of an unknown format version.
    """
    path = (folder or dataset.path) / FILE
    if not path.is_file():
        return None
    again = f"tune again by: recsys floors {dataset.path}" if folder in (None, dataset.path) else "run this again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("format"), values.get("format_version")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged, no JSON object; delete it, then {again}") from error
    if version != (FORMAT, FORMAT_VERSION):
        raise DataError(f"{path}: format {version}, wanted {(FORMAT, FORMAT_VERSION)}; delete it, then {again}")
    try:
        found = configs.load(TunedFloors, values)
    except ConfigError as error:
        raise DataError(f"{path}: damaged ({error}); delete it, then {again}") from error
    fault = fault_of_families(found.families, found.best, found.test, found.differences)
    fault = fault or fault_of_trials(found.trials, ("stage", "name"))
    if fault is not None:
        raise DataError(f"{path}: damaged ({fault}); delete it, then {again}")
    return found

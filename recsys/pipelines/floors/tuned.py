"""`floors.json` in a dataset's folder: the settings that a tuning found, every trial, and what they reach."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recsys import config as configs
from recsys.errors import ConfigError, DataError
from recsys.features.dataset import PreparedDataset
from recsys.files import storage_errors, write_json

FILE = "floors.json"
FORMAT, FORMAT_VERSION = "recsys-floors", 1
_FULL_DISK = "free space and run the same command again"


@dataclass(frozen=True, kw_only=True)
class TunedFloors:
    """What `tune_floors` found.

    best: family -> {"settings": …, "valid": NDCG@10 of all validation questions}. test: family -> metric -> {"mean",
    "low", "high"}; differences: family -> metric -> paired difference to popularity, likewise. left_out: family -> why.
    trials: {"stage", "family", "settings", "n" questions, "ndcg@10", "seconds"} of each trial, in the order of the
    plan; a random trial or a named one carries its "name". random_trials: how many were drawn at random.
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

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all.

        Raises:
            InputError: the place cannot be written.
            StorageError: the disk is full or failed.
        """
        with storage_errors(path, _FULL_DISK):
            write_json(path, asdict(self))


def read_floors(dataset: PreparedDataset) -> TunedFloors | None:
    """The tuned floors in the dataset's folder, of whichever data they are; None where none were tuned.

    Raises:
        DataError: the file is damaged or of an unknown format version.
    """
    path = dataset.path / FILE
    if not path.is_file():
        return None
    remedy = f"tune again by: recsys floors {dataset.path}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("format"), values.get("format_version")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: damaged, no JSON object; delete it, then {remedy}") from error
    if version != (FORMAT, FORMAT_VERSION):
        raise DataError(f"{path}: format {version}, wanted {(FORMAT, FORMAT_VERSION)}; delete it, then {remedy}")
    try:
        return configs.load(TunedFloors, values)
    except ConfigError as error:
        raise DataError(f"{path}: damaged ({error}); delete it, then {remedy}") from error

"""Trials that were already run, kept on disk after each one: a tuning that is stopped goes on from there.

A figure is a function of data, split, seed, family, settings and how many questions were asked; by these it is found
again, whichever plan asks for it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recsys.features.dataset import PreparedDataset
from recsys.files import storage_errors, write_json
from recsys.pipelines.floors.entries import fault_of_trials
from recsys.pipelines.floors.tuned import TunedFloors

FILE = "floors.partial.json"
_REMEDY = "free space and run the same command again; it goes on from there"


class TrialStore:
    """Figures by family, settings and number of questions."""

    def __init__(self, dataset: PreparedDataset, seed: int, earlier: Iterable[TunedFloors], folder: Path) -> None:
        """Take over what tunings of this seed measured, finished or stopped.

        Args:
            dataset: what the trials run on.
            seed: of the trials.
            earlier: finished tunings of this data and split, of whichever seed.
            folder: where the file lies.
        """
        self.path = folder / FILE
        self.fault: str | None = None  # why the file that lay there was left aside
        self._of = {"data_hash": dataset.data_hash, "split_hash": dataset.split_hash, "seed": seed}
        self._known: dict[str, dict[str, Any]] = {}
        for tuned in earlier:
            self._take([trial for trial in tuned.seeded_trials() if trial["seed"] == seed])
        self._take(self._stopped())

    def __len__(self) -> int:
        return len(self._known)

    def get(self, family: str, settings: Mapping[str, Any], n: int) -> dict[str, Any] | None:
        """{"ndcg@10", "seconds"} of this trial, if it was run."""
        return self._known.get(_key(family, settings, n))

    def put(self, family: str, settings: Mapping[str, Any], n: int, ndcg: float, seconds: float) -> None:
        """Keep a figure, on disk too.

        Raises:
            InputError: the dataset's folder cannot be written.
            StorageError: the disk is full or failed; the figures before are kept.
        """
        self._take([{"family": family, "settings": dict(settings), "n": n, "ndcg@10": ndcg, "seconds": seconds}])
        self.flush()

    def flush(self) -> None:
        """Write all figures; see `put`."""
        with storage_errors(self.path, _REMEDY):
            write_json(self.path, {**self._of, "trials": list(self._known.values())})

    def close(self) -> None:
        """Delete the file: all its figures stand in floors.json."""
        self.path.unlink(missing_ok=True)

    def _take(self, trials: list[dict[str, Any]]) -> None:
        names = ("family", "settings", "n", "ndcg@10", "seconds")
        for trial in trials:
            self._known[_key(trial["family"], trial["settings"], trial["n"])] = {name: trial[name] for name in names}

    def _stopped(self) -> list[dict[str, Any]]:
        """Trials of a tuning of the same data, split and seed that did not end; of another one they are of no use."""
        if not self.path.is_file():
            return []
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            values = None
        if not isinstance(values, dict):
            self.fault = "no JSON object"
            return []
        trials = values.pop("trials", None)
        if values != self._of:
            return []
        self.fault = fault_of_trials(trials)
        return [] if self.fault is not None else trials


def _key(family: str, settings: Mapping[str, Any], n: int) -> str:
    return json.dumps([family, settings, n], sort_keys=True)

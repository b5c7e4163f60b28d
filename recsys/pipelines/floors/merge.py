"""A new tuning joined to an earlier one of the same data and split: no family, trial or better setting is lost."""

import json
from typing import Any

from recsys.pipelines.floors.families import FAMILIES
from recsys.pipelines.floors.tuned import TunedFloors

Best = dict[str, dict[str, Any]]
Records = list[dict[str, Any]]


def merge_best(earlier: TunedFloors | None, best: Best) -> Best:
    """Of each family the better setting on the validation part, the earlier one where both are equal."""
    if earlier is None:
        return best
    both: Best = dict(earlier.best)
    for family, found in best.items():
        if family not in both or found["valid"] > both[family]["valid"]:
            both[family] = found
    return {family: both[family] for family in FAMILIES if family in both}


def merge_trials(earlier: TunedFloors | None, records: Records) -> Records:
    """The new records, then those of the earlier tuning that are not among them."""
    if earlier is None:
        return records
    new = {_key(record) for record in records}
    return records + [record for record in earlier.seeded_trials() if _key(record) not in new]


def _key(record: dict[str, Any]) -> str:
    names = ("stage", "family", "name", "settings", "n", "seed")
    return json.dumps([record[name] for name in names], sort_keys=True)

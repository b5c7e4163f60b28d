"""Every check of a prepared dataset in turn, and the report that `prepare` keeps in the manifest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage.exposure import exposure
from recsys.features.leakage.leak import Leak, refuse_leaks
from recsys.features.leakage.popularity import part_counts
from recsys.features.leakage.shards import check_shards
from recsys.features.leakage.structure import check_cuts, check_order, check_rule, check_units, check_users
from recsys.features.leakage.time_split import check_cut_times, check_own_targets, check_sides
from recsys.features.leakage.told import (
    DECLARED_LEAKY,
    check_told_appends,
    check_told_counts,
    check_told_facts,
    check_told_order,
    check_untouched,
)
from recsys.features.leakage.vocabulary import check_ids, check_items, check_user_order

WORKERS = 2

Check = Callable[[PreparedDataset], list[Leak]]
# What the other checks rely on: their answers mean nothing where one of these fails.
GROUND: tuple[Check, ...] = (check_told_order, check_told_appends, check_cuts, check_users)
CHECKS: tuple[Check, ...] = (
    check_sides,
    check_own_targets,
    check_items,
    check_user_order,
    check_ids,
    check_order,
    check_units,
    check_cut_times,
    check_rule,
    check_shards,
    check_told_counts,
    check_told_facts,
)


def find_leaks(dataset: PreparedDataset) -> list[Leak]:
    """Every leak of the dataset that its arrays, vocabularies and manifest can show; empty where there is none.

    `check_untouched` compares the bytes, apart: a dataset being prepared has just been hashed.

    Reads a million events at a time, for two checks beside each other. docs/protocols.md lists the names, and
    what no check can see.
    """
    leaks = [leak for check in GROUND for leak in check(dataset)]
    if leaks:
        return leaks
    with ThreadPoolExecutor(WORKERS) as pool:
        return [leak for found in pool.map(lambda check: check(dataset), CHECKS) for leak in found]


def open_without_leaks(path: str | Path) -> PreparedDataset:
    """The prepared dataset in this folder, every byte and every check made: its figures may carry its data hash.

    Raises:
        DataError: as `PreparedDataset.open`; a leak, by its name.
    """
    dataset = PreparedDataset.open(path)
    refuse_leaky(dataset, str(path))
    return dataset


def refuse_leaky(dataset: PreparedDataset, where: str) -> None:
    """Raise DataError unless the bytes are those that the data hash names, and hold no leak.

    Bytes come first: what other checks say of an edited array names no cause.
    """
    refuse_leaks(check_untouched(dataset), where)
    refuse_leaks(find_leaks(dataset), where)


def leakage_report(dataset: PreparedDataset) -> dict[str, Any]:
    """What training sees of each split's future, as plain values.

    Declared leaky protocols are measured where times are known; see `exposure`.

    Raises:
        DataError: a leak that the protocol does not declare; the message names it.
    """
    refuse_leaks(find_leaks(dataset))
    is_leaky = dataset.protocol in DECLARED_LEAKY
    report: dict[str, Any] = {"declared_leaky": is_leaky, "times_known": dataset.order == "time"}
    if dataset.protocol == "time":
        num_known = int(np.count_nonzero(part_counts(dataset)[0]))
        return report | {"training_events_after_a_cut": 0, "items_known_at_cut": num_known}
    if dataset.order != "time":
        return report
    return report | exposure(dataset)

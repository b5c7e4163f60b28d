"""What training can see of the future, for each split; and the proof that a split by time sees nothing of it."""

from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset, Queries, Split
from recsys.features.slices import Int64s, ranges

DECLARED_LEAKY = ("loo", "loo-novalid", "ratio")


def leakage_report(dataset: PreparedDataset) -> dict[str, Any]:
    """What training sees of each split's future, as plain values.

    Declared leaky protocols are measured where times are known: the share of training events that are later than at
    least one other user's first target, and, for an average target, the share of training events that are later.

    Raises:
        DataError: the arrays break what their protocol promises; the message names it.
    """
    check_cuts(dataset)
    is_leaky = dataset.protocol in DECLARED_LEAKY
    report: dict[str, Any] = {"declared_leaky": is_leaky, "times_known": dataset.order == "time"}
    if dataset.protocol == "time":
        check_time_split(dataset)
        num_known = int(np.count_nonzero(dataset.train_counts()))
        return report | {"training_events_after_a_cut": 0, "items_known_at_cut": num_known}
    if dataset.order != "time":
        return report
    splits: tuple[Split, ...] = ("valid", "test")
    return report | {split: _measure(dataset, dataset.queries(split)) for split in splits}


def check_cuts(dataset: PreparedDataset) -> None:
    """Raise DataError unless every user occurs once, with its events in order and its cuts in place."""
    users = np.concatenate([shard.users for shard in dataset.shards])
    if len(np.unique(users)) != len(users):
        counts = np.bincount(users)
        raise DataError(f"leakage: duplicated user: user index {int(counts.argmax())} occurs {counts.max()} times")
    for shard in dataset.shards:
        lengths = np.diff(shard.offsets)
        in_place = (shard.train_end >= 0) & (shard.train_end <= shard.valid_end) & (shard.valid_end <= lengths)
        if not in_place.all():
            raise DataError(f"leakage: misplaced cut: user index {_first(shard.users, ~in_place)}")
        if shard.times is not None:
            owner = np.repeat(shard.users, lengths)
            is_back = (np.diff(shard.times) < 0) & (owner[1:] == owner[:-1])
            if is_back.any():
                raise DataError(f"leakage: events out of order: user index {_first(owner[1:], is_back)}")


def check_time_split(dataset: PreparedDataset) -> None:
    """Raise DataError unless each part lies between its cuts and the items known at the first cut come first."""
    first, second = dataset.manifest["cuts_us"]
    bounds = {"train": (None, first), "valid": (first, second), "test": (second, None)}
    for shard in dataset.shards:
        if shard.times is None:
            raise DataError("leakage: a split by time without times")
        starts, ends = shard.offsets[:-1], shard.offsets[1:]
        edges = {"train": (starts, starts + shard.train_end), "test": (starts + shard.valid_end, ends)}
        edges["valid"] = (edges["train"][1], edges["test"][0])
        for part, (low, high) in bounds.items():
            times = shard.times[ranges(*edges[part])]
            if (low is not None and (times < low).any()) or (high is not None and (times >= high).any()):
                raise DataError(f"leakage: future event: the {part} part holds an event beyond its cut")
    known = np.flatnonzero(dataset.train_counts())
    if len(known) and known[-1] != len(known):
        raise DataError(f"leakage: vocabulary from the future: {len(known)} items are known, index {known[-1]} is one")


def _first(users: Int64s, is_wrong: np.ndarray) -> int:
    return int(users[is_wrong][0])


def _measure(dataset: PreparedDataset, queries: Queries) -> dict[str, Any]:
    train = dataset.train_slices()
    position = [ranges(train.start[train.shard == n], train.end[train.shard == n]) for n in range(len(dataset.shards))]
    times = np.concatenate([shard.times[p] for shard, p in zip(dataset.shards, position, strict=True)])  # type: ignore[index]  # order is time
    if not len(queries) or not len(times):
        return {"queries": len(queries)}
    asked = _first_target_times(dataset, queries)
    # A user's own training events are never later than the user's target.
    is_after = times > asked.min()
    later = len(times) - np.searchsorted(np.sort(times), asked, side="right")
    return {
        "queries": len(queries),
        "training_share_after_a_target": round(float(is_after.mean()), 6),
        "mean_training_share_after_target": round(float(later.mean() / len(times)), 6),
    }


def _first_target_times(dataset: PreparedDataset, queries: Queries) -> Int64s:
    times = np.zeros(len(queries), np.int64)
    for number, shard in enumerate(dataset.shards):
        mine = queries.shard == number
        times[mine] = shard.times[queries.target_start[mine]]  # type: ignore[index]  # order is time
    return times

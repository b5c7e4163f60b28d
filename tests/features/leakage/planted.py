"""Leaks planted into a prepared dataset: each changes arrays and manifest, `changed` makes the split hash fit."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import find_leaks
from recsys.features.splits import split_hash

DAY = 86_400
Arrays = dict[str, Any]
Manifest = dict[str, Any]
Change = Callable[[list[Arrays], Manifest], None]
Prepared = Callable[..., PreparedDataset]


def changed(dataset: PreparedDataset, change: Change, *, sealed: bool = True) -> PreparedDataset:
    """The dataset after `change(arrays of each shard, manifest)`, its split hash made to fit unless told otherwise."""
    arrays = [{f.name: np.array(getattr(s, f.name)) for f in dataclasses.fields(s)} for s in dataset.shards]
    manifest = copy.deepcopy(dataset.manifest)
    change(arrays, manifest)
    shards = [dataclasses.replace(s, **a) for s, a in zip(dataset.shards, arrays, strict=True)]
    found = PreparedDataset(Path(dataset.path), manifest, shards)
    if sealed:
        manifest["split_hash"] = split_hash(found)
    return found


def first_row(arrays: Arrays, is_true: Callable[[Arrays, int], bool]) -> tuple[int, slice]:
    """The first row of the first shard for which this holds, and its events."""
    row = next(row for row in range(len(arrays["users"])) if is_true(arrays, row))
    return row, slice(int(arrays["offsets"][row]), int(arrays["offsets"][row + 1]))


def has_train_and_valid(arrays: Arrays, row: int) -> bool:
    return bool(0 < arrays["train_end"][row] < arrays["valid_end"][row])


def names(dataset: PreparedDataset) -> set[str]:
    return {leak.name for leak in find_leaks(dataset)}


def nothing(shards: list[Arrays], manifest: Manifest) -> None:
    del shards, manifest


def later_cut(shards: list[Arrays], manifest: Manifest) -> None:
    """One user trains on an event after the cut."""

    def is_after(arrays: Arrays, row: int) -> bool:
        place = arrays["offsets"][row] + arrays["train_end"][row]
        return has_train_and_valid(arrays, row) and arrays["times"][place] > manifest["cuts_us"][0]

    row, _ = first_row(shards[0], is_after)
    shards[0]["train_end"][row] += 1


def earlier_cut(shards: list[Arrays], manifest: Manifest) -> None:
    """One user's last training event counts as a target."""
    del manifest
    row, _ = first_row(shards[0], has_train_and_valid)
    shards[0]["train_end"][row] -= 1


def tie(shards: list[Arrays], manifest: Manifest) -> None:
    """An event at the very time of the cut is trained on; others of that time are targets."""

    def is_at_cut(arrays: Arrays, row: int) -> bool:
        place = arrays["offsets"][row] + arrays["train_end"][row]
        return has_train_and_valid(arrays, row) and arrays["times"][place] == manifest["cuts_us"][0]

    arrays, row = next(
        (arrays, row) for arrays in shards for row in range(len(arrays["users"])) if is_at_cut(arrays, row)
    )
    arrays["train_end"][row] += 1


def tie_of_an_earlier_target(shards: list[Arrays], manifest: Manifest) -> None:
    """The last training timestamp is split: one of its events is a target."""
    latest = max(times[times < manifest["cuts_us"][0]].max() for times in (a["times"] for a in shards))
    arrays, row = next(
        (arrays, row)
        for arrays in shards
        for row in range(len(arrays["users"]))
        if arrays["train_end"][row] > 1
        and arrays["times"][arrays["offsets"][row] + arrays["train_end"][row] - 1] == latest
    )
    arrays["train_end"][row] -= 1


def duplicated_row(shards: list[Arrays], manifest: Manifest) -> None:
    """Two rows of one shard are one user."""
    del manifest
    shards[0]["users"][2] = shards[0]["users"][1]


def user_in_two_shards(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[-1]["users"][0] = shards[0]["users"][0]


def items_of_the_future_first(shards: list[Arrays], manifest: Manifest) -> None:
    """The first and the last item change their indices."""
    last = manifest["counts"]["items"]
    for arrays in shards:
        items = arrays["items"]
        arrays["items"] = np.where(items == 1, last, np.where(items == last, 1, items)).astype(np.int32)


def items_after_the_cut_permuted(shards: list[Arrays], manifest: Manifest) -> None:
    last = manifest["counts"]["items"]
    for arrays in shards:
        items = arrays["items"]
        arrays["items"] = np.where(items == last - 1, last, np.where(items == last, last - 1, items)).astype(np.int32)


def item_without_events(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    for arrays in shards:
        arrays["items"][arrays["items"] == 3] = 4


def item_beyond_the_vocabulary(shards: list[Arrays], manifest: Manifest) -> None:
    shards[0]["items"][5] = manifest["counts"]["items"] + 1


def padding_among_the_items(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["items"][5] = 0


def swapped_times(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    row, events = first_row(shards[0], lambda a, r: a["train_end"][r] > 1)
    times = shards[0]["times"]
    times[[events.start, events.start + 1]] = times[[events.start + 1, events.start]]


def train_end_beyond(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["train_end"][0] = 99


def offset_by_one(shards: list[Arrays], manifest: Manifest) -> None:
    """Every user but the first begins one event late."""
    del manifest
    shards[0]["offsets"][1:-1] += 1


def other_unit(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["times"] //= 1000


def later_cuts_told(shards: list[Arrays], manifest: Manifest) -> None:
    """The manifest says a cut between two timestamps, where no event stands."""
    del shards
    manifest["cuts_us"][0] -= 1


def much_later_cuts_told(shards: list[Arrays], manifest: Manifest) -> None:
    del shards
    manifest["cuts_us"][0] += 3 * DAY * 1_000_000


def cuts_moved_together(shards: list[Arrays], manifest: Manifest) -> None:
    """All users and the manifest agree on a cut other than the shares give."""
    cut = manifest["cuts_us"][0] + 2 * DAY * 1_000_000
    manifest["cuts_us"][0] = min(cut, manifest["cuts_us"][1])
    for arrays in shards:
        for row in range(len(arrays["users"])):
            events = arrays["times"][arrays["offsets"][row] : arrays["offsets"][row + 1]]
            arrays["train_end"][row] = int((events < manifest["cuts_us"][0]).sum())


def times_of_whole_weeks(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    week = 7 * DAY * 1_000_000
    for arrays in shards:
        arrays["times"] = arrays["times"] // week * week

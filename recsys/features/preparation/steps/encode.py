"""One arranged shard as the arrays of a prepared dataset."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recsys.features.dataset import Order, Protocol
from recsys.features.preparation.filters import Kept, counts_by_user
from recsys.features.preparation.steps.merge import Merged
from recsys.features.slices import Int32s, Int64s, Shard, offsets_of, ranges
from recsys.features.splits import SplitConfig, by_time, leave_one_out, ratio


def encode(
    kept: Kept,
    merged: Merged,
    number: int,
    order: Order,
    kinds: list[str | None],
    event_types: Sequence[str],
    folder: Path,
) -> Int64s:
    """Write a shard, users by ascending index, but for its cuts; gives back the offsets, (n+1,) int64.

    Args:
        kept: the arranged shards, filtered.
        merged: indices.
        number: of the shard.
        order: what the order keys are.
        kinds: event types by their number in the source.
        event_types: event types by their number in the dataset, number 1 first.
        folder: where the arrays go.
    """
    folder.mkdir(parents=True)
    part, index = kept.parts[number], merged.user_index[number]
    events = kept.events(number)
    users = np.flatnonzero(index)
    users = users[np.argsort(index[users])]
    places = ranges(part.offsets[users], part.offsets[users + 1])
    offsets = offsets_of(counts_by_user(events, part.offsets)[users])
    if not events.all():
        places = places[events[places]]
    np.save(folder / "users.npy", index[users])
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "items.npy", merged.item_index[number].astype(np.int32)[part.item[places]])
    key, kind = part.key, part.kind
    if order == "time" and key is not None:
        np.save(folder / "times.npy", key[places])
    if event_types and kind is not None:
        number_of = {name: number for number, name in enumerate(event_types, start=1)}
        numbers = np.array([number_of.get(name or "", 0) for name in kinds], np.int32)
        np.save(folder / "event_types.npy", numbers[kind[places]])
    _save_for_append(folder, key[places] if order == "position" and key is not None else None, kind, places, kinds)
    return offsets


def split_shard(
    shard: Shard, protocol: Protocol, cuts: tuple[int, int] | None, split: SplitConfig
) -> tuple[Int64s, Int64s]:
    """train_end and valid_end of a shard, (n,) int64 each."""
    if cuts is not None and shard.times is not None:
        return by_time(shard.offsets, shard.times, cuts)
    if protocol == "ratio":
        return ratio(shard.offsets, split.valid_share, split.test_share)
    return leave_one_out(shard.offsets, with_valid=protocol == "loo")


def event_types_of(kept: Kept, kinds: Sequence[str | None], known: Sequence[str] = ()) -> list[str]:
    """The types that kept events have, in the order of their first event in the source, after those known before."""
    used: set[int] = set()
    for number, part in enumerate(kept.parts):
        if part.kind is not None:
            used.update(np.unique(np.asarray(part.kind)[kept.events(number)]).tolist())
    found = [name for number, name in enumerate(kinds) if number in used and name and name not in known]
    return [*known, *found]


def _save_for_append(
    folder: Path, position: Int64s | None, kind: Int32s | None, places: Int64s, kinds: list[str | None]
) -> None:
    """What later events are merged by and a dataset has no other use for."""
    columns = {}
    if position is not None:
        columns["position"] = pl.Series(position)
    if kind is not None:
        columns["event_type"] = pl.Series(kinds, dtype=pl.String)[kind[places]]
    if columns:
        pl.DataFrame(columns).write_parquet(folder / "append.parquet")

"""Events in the order of their users, as flat arrays with vocabularies; a function of the events alone.

Indices are given by first appearance over the events in the order (time, file, row), or (file, row) where times are
not real: with a split by time the items known at a cut are a prefix.
"""

import dataclasses
import zlib

import numpy as np
import polars as pl

from recsys.features.dataset import Order
from recsys.features.slices import Int32s, Int64s, offsets_of
from recsys.features.vocabulary import Vocabulary

EVENTS_PER_SHARD = 20_000_000


@dataclasses.dataclass(frozen=True)
class Arranged:
    """All events, user after user.

    Attributes:
        users, items: the vocabularies.
        offsets: (U+1,) int64, where the events of user index u start: offsets[u-1].
        item_index: (E,) int32.
        times: (E,) int64 us, or None.
    """

    users: Vocabulary
    items: Vocabulary
    offsets: Int64s
    item_index: Int32s
    times: Int64s | None


def arrange(interactions: pl.DataFrame, order: Order) -> Arranged:
    """The events with indices for ids, sorted by user, each user's events in order, ties by (file, row).

    Args:
        interactions: in the order of the files and rows; `user_id`, `item_id`, and `timestamp` or `position`.
        order: what orders the events.
    """
    key = {"time": "timestamp", "position": "position"}.get(order)
    events = interactions.select("user_id", "item_id", *([key] if key else []))
    if order == "time":
        events = events.sort("timestamp", maintain_order=True)
    users, events = _encode(events, "user_id")
    items, events = _encode(events, "item_id")
    events = events.sort(["user_id", "position"] if order == "position" else "user_id", maintain_order=True)
    counts = np.bincount(events["user_id"].to_numpy(), minlength=len(users) + 1)[1:]
    times = events["timestamp"].to_numpy() if order == "time" else None
    return Arranged(users, items, offsets_of(counts), events["item_id"].cast(pl.Int32).to_numpy(), times)


def shard_numbers(users: Vocabulary, num_shards: int) -> Int64s:
    """The shard of each user, (U,) int64: crc32 of the raw id's text modulo the number of shards."""
    if num_shards == 1:
        return np.zeros(len(users), np.int64)
    raw = users.decode(np.arange(1, len(users) + 1))
    return np.array([zlib.crc32(str(user).encode()) % num_shards for user in raw], np.int64)


def default_num_shards(num_events: int) -> int:
    """One up to 20 million events."""
    return max(1, -(-num_events // EVENTS_PER_SHARD))


def _encode(events: pl.DataFrame, column: str) -> tuple[Vocabulary, pl.DataFrame]:
    """The vocabulary of the column by first appearance, and the events with indices (UInt32) in its place."""
    ids = events.select(pl.col(column).unique(maintain_order=True))
    numbered = ids.with_row_index("index", offset=1)
    encoded = events.join(numbered, on=column, how="left", maintain_order="left")
    values = ids.to_series()
    raw = values.to_numpy() if values.dtype == pl.Int64 else values.to_list()
    return Vocabulary.from_ids(raw), encoded.with_columns(pl.col("index").alias(column)).drop("index")

"""Events of users and items that the filters leave out: a later day may make them eligible.

`held_back.parquet`: `what` (user or item), `id` (text), `events`. Of an item all events that the policies count; of a
user those at items that have enough.
"""

import numpy as np
import polars as pl

from recsys.features.preparation.filters import FilterConfig, Kept, counts_by_user
from recsys.features.preparation.steps.merge import Merged
from recsys.features.slices import Int64s

NAME = "held_back.parquet"
SCHEMA = {"what": pl.String, "id": pl.String, "events": pl.Int64}


def keep_eligible(kept: Kept, config: FilterConfig, known: tuple[pl.Series, pl.Series], held: pl.DataFrame) -> None:
    """Leave out new events of users and items that still have too few; what has an index stays.

    Args:
        kept: the arranged shards, of old events (rows below 0) and new ones; changed in place.
        config: thresholds, without a k-core.
        known: raw user and item ids that have an index.
        held: events held back so far.
    """
    if not config.leaves_out:
        return
    counts, before = np.zeros(len(kept.items), np.int64), np.zeros(len(kept.items), np.int64)
    is_known = np.zeros(len(kept.items), np.bool_)
    for number, part in enumerate(kept.parts):
        numbers, ids = kept.numbers[number], part.items
        np.add.at(counts, numbers, np.bincount(part.item[part.row >= 0], minlength=len(ids)))
        before[numbers], is_known[numbers] = _held(ids, held, "item"), ids.is_in(known[1].implode()).to_numpy()
    kept.items &= is_known | (counts + before >= config.min_item_events)
    for number, part in enumerate(kept.parts):
        new = counts_by_user(kept.events(number) & (part.row >= 0), part.offsets)
        ids = part.users
        enough = new + _held(ids, held, "user") >= config.min_user_events
        kept.users[number] &= ids.is_in(known[0].implode()).to_numpy() | enough


def hold_back(kept: Kept, merged: Merged, before: pl.DataFrame) -> pl.DataFrame:
    """What is held back now: users and items without an index, and their events so far.

    Args:
        kept: the arranged shards, filtered.
        merged: the indices.
        before: what was held back before these shards' new events.
    """
    frames = [before.with_columns(index=pl.lit(0, pl.Int64))]
    for number, part in enumerate(kept.parts):
        is_new = part.row >= 0
        is_offered = kept.items[kept.numbers[number]][part.item] & is_new
        of_items = np.bincount(part.item[is_new], minlength=len(part.items))
        frames.append(_counted("item", part.items, of_items, merged.item_index[number]))
        of_users = counts_by_user(is_offered, part.offsets)
        frames.append(_counted("user", part.users, of_users, merged.user_index[number]))
    counted = pl.concat(frames).group_by("what", "id").agg(pl.col("events").sum(), pl.col("index").max())
    return counted.filter(pl.col("index") == 0, pl.col("events") > 0).select(*SCHEMA).sort("what", "id")


def nothing_held() -> pl.DataFrame:
    """The table before the first event."""
    return pl.DataFrame({}, SCHEMA)


def _counted(what: str, ids: pl.Series, events: Int64s, index: Int64s) -> pl.DataFrame:
    columns = {"id": ids.cast(pl.String), "events": pl.Series(events, dtype=pl.Int64), "index": pl.Series(index)}
    return pl.DataFrame(columns).select(pl.lit(what).alias("what"), *columns)


def _held(ids: pl.Series, held: pl.DataFrame, what: str) -> Int64s:
    """Events held back of each id, (n,) int64."""
    known = held.filter(pl.col("what") == what).select("id", "events")
    joined = ids.cast(pl.String).to_frame("id").join(known, on="id", how="left", maintain_order="left")
    return joined["events"].fill_null(0).to_numpy().astype(np.int64)

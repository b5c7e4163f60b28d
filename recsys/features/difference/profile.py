"""What of a log is compared with another: read once, chunk by chunk."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.features.describe.counts import Counts
from recsys.features.describe.shared import HOUR_US
from recsys.features.readers import (
    Chunk,
    InteractionSource,
    MixedIds,
    hash_sources,
    open_interactions,
    with_string_ids,
)
from recsys.features.schema import COLUMNS, ReadConfig
from recsys.features.slices import Int64s

ABSENT = "missing fields: "  # of a JSON object, by name
PARQUET_MAGIC = b"PAR1"
WEIGHT_DIGITS = 3
UNTYPED = "text"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class LogProfile:
    """What of a log is compared.

    Attributes:
        path: of the log.
        kinds: `order`, `time_unit`, `user_id`, `item_id`: what the reader took them for.
        columns: name and type of every column; `text` where the format has no types.
        digests: sha256 of each file, sorted.
        counts: `lines`, `rejected`, `events`, and `clamped`: of them with a time in the future.
        missing: share of the lines without a value, by column: ours by our names, others by their own.
        users: `user_id` (text) and `events`.
        items: `item_id` (text) and `events`.
        types: `event_type` and `events`; empty without that column.
        weights: `weight` (3 significant digits) and `events`; empty without that column.
        hours: (24,) int64, events by hour of the day, UTC; None without times.
        span_us: first and last credible time, or None.
    """

    path: Path
    kinds: dict[str, str | None]
    columns: dict[str, str]
    digests: list[str]
    counts: dict[str, int]
    missing: dict[str, float]
    users: pl.DataFrame
    items: pl.DataFrame
    types: pl.DataFrame
    weights: pl.DataFrame
    hours: Int64s | None
    span_us: tuple[int, int] | None


def profile_log(path: Path, read: ReadConfig, say: Say) -> LogProfile:
    """The profile of a log.

    Args:
        path: a file, a folder or a glob; see `open_interactions`.
        read: how to read it.
        say: told once which log is read.

    Raises:
        DataError: the source cannot be read, or holds no usable event.
    """
    source = open_interactions(path, read)
    say(f"{path}: reading about {source.num_rows_estimate:,} events")
    pass_ = _Pass()
    try:
        for chunk in source.chunks(counts_missing=True):
            pass_.add(chunk, source.order)
    except MixedIds as mixed:
        return profile_log(path, with_string_ids(read, mixed.column), say)
    if not pass_.events:
        raise DataError(f"{path}: no usable event; see what is rejected: recsys data describe {path}")
    kinds = {"order": source.order, "time_unit": source.time_unit}
    kinds |= {"user_id": source.user_kind, "item_id": source.item_kind}
    has_times = source.order == "time" and pass_.latest is not None
    return LogProfile(
        path=path,
        kinds=kinds,
        columns=_columns(source),
        digests=sorted(str(file["sha256"]) for file in hash_sources(source)),
        counts={
            "lines": pass_.lines,
            "rejected": pass_.lines - pass_.good,
            "events": pass_.events,
            "clamped": pass_.clamped,
        },
        missing=pass_.missing_shares(),
        users=pass_.users.table(),
        items=pass_.items.table(),
        types=pass_.types.table(),
        weights=pass_.weights.table(),
        hours=pass_.hours if has_times else None,
        span_us=(pass_.earliest, pass_.latest) if has_times else None,  # type: ignore[arg-type]  # both are known
    )


class _Pass:
    """Counts of the chunks seen so far."""

    def __init__(self) -> None:
        self.lines = self.good = self.events = self.clamped = 0
        self.users, self.items = Counts("user_id"), Counts("item_id")
        self.types, self.weights = Counts("event_type"), Counts("weight")
        self.hours = np.zeros(24, np.int64)
        self.earliest: int | None = None
        self.latest: int | None = None
        self._missing: Counter[str] = Counter()

    def add(self, chunk: Chunk, order: str) -> None:
        rows = chunk.interactions
        self.lines, self.good = self.lines + chunk.num_lines, self.good + chunk.num_good
        self.events += rows.height
        self._missing.update(chunk.missing)
        for reason, count in chunk.rejected["reason"].value_counts().iter_rows():
            if reason.startswith(ABSENT):
                names = set(COLUMNS) & set(reason.removeprefix(ABSENT).split(", "))
                self._missing.update(dict.fromkeys(names, count))
        self.users.add(rows["user_id"].cast(pl.String))
        self.items.add(rows["item_id"].cast(pl.String))
        if "event_type" in rows.columns:
            self.types.add(rows["event_type"].drop_nulls())
        if "weight" in rows.columns:
            self.weights.add(rows["weight"].drop_nulls().round_sig_figs(WEIGHT_DIGITS))
        if order == "time":
            self.clamped += int(rows["is_clamped"].sum())
            self._add_times(rows["timestamp"].drop_nulls().to_numpy())

    def missing_shares(self) -> dict[str, float]:
        return {name: count / max(self.lines, 1) for name, count in self._missing.items()}

    def _add_times(self, times: Int64s) -> None:
        if not len(times):
            return
        self.hours += np.bincount(times // HOUR_US % 24, minlength=24)
        low, high = int(times.min()), int(times.max())
        self.earliest = low if self.earliest is None else min(self.earliest, low)
        self.latest = high if self.latest is None else max(self.latest, high)


def _columns(source: InteractionSource) -> dict[str, str]:
    types: dict[str, Any] = {}
    for file in source.files:
        if _is_parquet(file.path):
            types |= {name: str(dtype) for name, dtype in pl.read_parquet_schema(file.path).items()}
    return {name: types.get(name, UNTYPED) for name in source.names}


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC

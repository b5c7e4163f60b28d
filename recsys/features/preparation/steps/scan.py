"""A source, split by user: each chunk of rows becomes a file whose rows stand shard after shard.

    shard of a user = hash_ids(user) modulo the number of shards

So a shard's rows are one slice of every file, in the order of the source. Rows keep their number in the source, and the
order key; policies that need no more than a row are applied here.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recsys.features.dataset import Order
from recsys.features.preparation.policies import EventConfig, choose
from recsys.features.preparation.progress import Steps
from recsys.features.preparation.steps.hashing import hash_ids
from recsys.features.slices import Int64s

KEY_OF: dict[Order, str | None] = {"time": "timestamp", "position": "position", "rows": None}
CLAMPED = np.iinfo(np.int64).max  # stands for the latest credible time until the whole source is known
REJECTED = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "text": pl.String}


@dataclasses.dataclass
class Scan:
    """A source that lies split in a folder.

    Attributes:
        folder: the files `00000.arrow`, …: `user_id`, `item_id`, `key` (Int64, with an order key), `row` (Int64, number
            in the source from 0), `kind` (Int32, with event types).
        bounds: of each file where its shards start, (S+1,) int64.
        lines, good, rejected, events: counts of data lines and of the interactions in them.
        reasons: rejected lines by reason.
        left_out: events by policy.
        clamped: times in the future.
        latest: the latest credible time, or None.
        kinds: the event types by number.
    """

    folder: Path
    bounds: list[Int64s] = dataclasses.field(default_factory=list)
    lines: int = 0
    good: int = 0
    rejected: int = 0
    events: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    clamped: int = 0
    latest: int | None = None
    kinds: dict[str | None, int] = dataclasses.field(default_factory=dict)

    def shard(self, number: int) -> pl.DataFrame:
        """The shard's rows in the order of the source, with the times of clamped ones put in place."""
        parts = []
        for name, bounds in enumerate(self.bounds):
            if bounds[number] < bounds[number + 1]:
                parts.append(_rows(self.folder / f"{name:05d}.arrow", int(bounds[number]), int(bounds[number + 1])))
        frame = pl.concat(parts or [_rows(self.folder / "00000.arrow", 0, 0)], rechunk=True)
        if self.clamped and "key" in frame.columns:
            latest = pl.lit(self.latest, pl.Int64)
            frame = frame.with_columns(key=pl.when(pl.col("key") == CLAMPED).then(latest).otherwise("key"))
        return frame

    def rejected_rows(self) -> pl.DataFrame:
        """`file`, `line`, `reason`, `text` of every rejected line."""
        files = sorted(self.folder.glob("rejected-*.arrow"))
        return pl.concat([pl.read_ipc(file) for file in files]) if files else pl.DataFrame({}, REJECTED)


def scan(
    chunks: Iterable[Any],
    order: Order,
    num_shards: int,
    events: EventConfig,
    folder: Path,
    steps: Steps,
) -> Scan:
    """The source, split into files in a folder of its own.

    Args:
        chunks: of an `InteractionSource`.
        order: what orders the events.
        num_shards: how many shards.
        events: policies; those of types and weights are applied.
        folder: where the files go.
        steps: told of every chunk.
    """
    folder.mkdir(parents=True)
    found = Scan(folder)
    for number, chunk in enumerate(chunks):
        rows, key = chunk.interactions, KEY_OF[order]
        _count(found, chunk)
        columns = {"row": pl.Series(np.arange(found.events, found.events + rows.height))}
        if key is not None:
            columns["key"] = rows[key].fill_null(CLAMPED)
        if "event_type" in rows.columns:
            columns["kind"] = kind_numbers(rows["event_type"], found.kinds)
        found.events += rows.height
        frame, left_out = choose(rows.with_columns(**columns), events)
        found.left_out.update(left_out)
        _write(found, frame.select("user_id", "item_id", *columns), num_shards, folder / f"{number:05d}.arrow")
        steps.advance(chunk.num_lines)
    return found


def kind_numbers(types: pl.Series, known: dict[str | None, int]) -> pl.Series:
    """The number of each type; new ones are added to `known`."""
    for name in types.unique(maintain_order=True):
        known.setdefault(name, len(known))
    table = pl.DataFrame({"type": pl.Series(list(known), dtype=pl.String), "kind": list(known.values())})
    joined = types.to_frame("type").join(table, on="type", how="left", nulls_equal=True, maintain_order="left")
    return joined["kind"].cast(pl.Int32)


def _rows(path: Path, start: int, end: int) -> pl.DataFrame:
    """A slice of a file, memory-mapped: only its own pages are read."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    frame = pl.from_arrow(table.slice(start, end - start))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _count(found: Scan, chunk: Any) -> None:
    rows = chunk.interactions
    found.lines += chunk.num_lines
    found.good += chunk.num_good
    found.rejected += chunk.rejected.height
    if chunk.rejected.height:
        found.reasons.update(dict(chunk.rejected["reason"].value_counts().iter_rows()))
        chunk.rejected.write_ipc(found.folder / f"rejected-{len(found.bounds):05d}.arrow")
    if "is_clamped" not in rows.columns:
        return
    found.clamped += int(rows["is_clamped"].sum())
    credible = rows["timestamp"].max() if rows.height else None
    if isinstance(credible, int):
        found.latest = credible if found.latest is None else max(found.latest, credible)


def _write(found: Scan, frame: pl.DataFrame, num_shards: int, path: Path) -> None:
    bounds = np.array([0, frame.height], np.int64)
    if num_shards > 1:
        shard = (hash_ids(frame["user_id"]) % np.uint64(num_shards)).astype(np.uint16)
        frame = frame[np.argsort(shard, kind="stable")]
        bounds = np.append(0, np.cumsum(np.bincount(shard, minlength=num_shards)))
    frame.write_ipc(path, compression="uncompressed")
    found.bounds.append(bounds)

"""Interaction logs of any supported format as one table, and the rows that could not be used.

    good lines + rejected lines = data lines

Raw ids are kept: integers stay integers, texts stay texts, a mixture becomes texts. Rows stand in the file's order.
"""

import dataclasses
import time
from pathlib import Path

import polars as pl

from recsys.errors import DataError
from recsys.features.dataset import Order
from recsys.features.formats.detect import MOVIELENS_SEPARATOR, is_parquet, separator_of, text_format
from recsys.features.formats.json_lines import read_json_lines
from recsys.features.formats.parquet import read_parquet
from recsys.features.formats.quarantine import judge
from recsys.features.formats.raw import RawTable
from recsys.features.formats.separated import read_separated
from recsys.features.formats.sequences import read_sequences
from recsys.features.formats.source import Source, read_lines, read_source
from recsys.features.formats.times import is_empty, iso_to_us, looks_like_times
from recsys.features.schema import ReadConfig, near_miss, resolve_columns
from recsys.features.vocabulary import IdKind

DAY_US = 86_400_000_000


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """A source, read.

    Attributes:
        interactions: `file` (Int32, number of the source file), `line`, `user_id`, `item_id`, `timestamp` (Int64 us
            UTC) with `is_clamped`, or `position`, and what else the source has of `weight`, `event_type`, `session_id`.
        rejected: `file` (name), `line`, `reason`, `text`.
        order: what orders the events.
        user_kind, item_kind: `int` or `str`.
        time_unit: what numbers of the time column counted, `iso`, `type`, or None without times.
        counts: `lines` = `good` + `rejected`; `events`, which differ from `good` where a line holds many; `clamped`.
        sources: `name`, `bytes` and `sha256` of each file.
        notes: what was detected and a reader of the log should know.
    """

    interactions: pl.DataFrame
    rejected: pl.DataFrame
    order: Order
    user_kind: IdKind
    item_kind: IdKind
    time_unit: str | None
    counts: dict[str, int]
    sources: list[dict[str, str | int]]
    notes: list[str]


def read_interactions(path: Path, config: ReadConfig) -> ReadResult:
    """The interactions of a file.

    Args:
        path: CSV, TSV, Parquet, JSONL, MovieLens `::` or "user item item …" lines; text may be gzip.
        config: how to read; every `auto` is detected.

    Raises:
        DataError: no such file, empty, damaged, in another encoding, without a needed column, or of no known format.
    """
    source = read_source(Path(path))
    table, is_sequences = _read_table(source, config)
    resolved = resolve_columns(table.names, config, str(source.path))
    order, notes = _order(table, resolved, config, str(source.path))
    judged = judge(table, resolved, order, config, _latest_us(config), str(source.path))
    good = judged.good.select(pl.lit(0, pl.Int32).alias("file"), pl.all())
    rejected = judged.rejected.select(pl.lit(source.name).alias("file"), pl.all())
    if is_sequences:
        rejected = rejected.unique("line", keep="first", maintain_order=True)
        good = good.filter(~pl.col("line").is_in(rejected["line"].implode())) if rejected.height else good
    num_good = good["line"].n_unique() if is_sequences else good.height
    clamped = good.filter("is_clamped") if order == "time" else good.clear()
    if clamped.height:
        at = ", ".join(f"{source.name}:{line}" for line in clamped["line"].head(3))
        notes.append(f"{clamped.height:,} times in the future set back to the latest credible one, the first: {at}")
    counts = {"lines": num_good + rejected.height, "good": num_good, "rejected": rejected.height}
    return ReadResult(
        interactions=good,
        rejected=rejected,
        order=order,
        user_kind=judged.user_kind,
        item_kind=judged.item_kind,
        time_unit=judged.time_unit,
        counts=counts | {"events": good.height, "clamped": clamped.height},
        sources=[{"name": source.name, "bytes": source.size_bytes, "sha256": source.sha256}],
        notes=notes,
    )


def _read_table(source: Source, config: ReadConfig) -> tuple[RawTable, bool]:
    """The file's raw rows, and whether a line of it holds many events."""
    if is_parquet(source, config):
        return read_parquet(source, config), False
    lines = read_lines(source, config)
    kind = text_format(source, lines, config)
    if kind == "jsonl":
        return read_json_lines(source, lines, config), False
    if kind == "sequences":
        return read_sequences(source, lines), True
    separator = MOVIELENS_SEPARATOR if kind == "movielens" else separator_of(lines, config)
    return read_separated(source, lines, separator, config), False


def _order(table: RawTable, resolved: dict[str, str], config: ReadConfig, where: str) -> tuple[Order, list[str]]:
    """What orders the events, and what to say about it."""
    if config.order == "rows":
        return "rows", []
    if config.order == "position":
        return "position", []
    if "timestamp" in resolved:
        if table.rows.height and is_empty(table.rows[resolved["timestamp"]]).all():
            raise DataError(
                f"{where}: column {resolved['timestamp']} is empty; name the time column: "
                "read.columns.timestamp=NAME, or set read.order=rows"
            )
        is_told = config.order == "time" or config.time_unit != "auto"
        if is_told or looks_like_times(table.rows[resolved["timestamp"]]):
            return "time", []
        what = f"{resolved['timestamp']} holds numbers before 1973-03, taken as positions, not times"
        return "position", [f"{what}; read.order=time reads them as times"]
    near = near_miss("timestamp", table.names, resolved)
    hint = f" ({near!r} looks like one: read.columns.timestamp={near})" if near else ""
    if "position" in resolved:
        return "position", [f"no time column{hint}: ordered by {resolved['position']}"]
    return "rows", [f"no time column{hint}: ordered by the rows of the file"]


def _latest_us(config: ReadConfig) -> int:
    if config.latest_time is None:
        return time.time_ns() // 1000 + DAY_US
    try:
        return iso_to_us(config.latest_time)
    except ValueError as error:
        raise DataError(
            f"read.latest_time={config.latest_time!r}: wanted an ISO time such as 2024-05-01T00:00:00Z"
        ) from error

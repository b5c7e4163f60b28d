"""Interaction logs of any supported format as tables, and the rows that could not be used.

    good lines + rejected lines = data lines

Raw ids are kept: integers stay integers, texts stay texts, a mixture becomes texts. Rows stand in the order of the
files and of their lines. `open_interactions` reads in chunks, `read_interactions` everything at once.
"""

import dataclasses
from pathlib import Path

import polars as pl

from recsys.errors import DataError, MixedIds
from recsys.features.dataset import Order
from recsys.features.formats.interaction_source import Chunk, InteractionSource
from recsys.features.formats.source import hash_files
from recsys.features.manifest import is_prepared
from recsys.features.schema import ReadConfig
from recsys.features.vocabulary import IdKind

__all__ = [
    "Chunk",
    "InteractionSource",
    "MixedIds",
    "ReadResult",
    "hash_sources",
    "open_interactions",
    "read_interactions",
    "with_string_ids",
]


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


def open_interactions(path: Path, config: ReadConfig) -> InteractionSource:
    """A log, to be read chunk by chunk.

    Args:
        path: a file, a folder or a glob; CSV, TSV, Parquet, JSONL, RecBole `.inter`, MovieLens `::` or
            "user item item …" lines; plain, gzip or zstd.
        config: how to read; every `auto` is decided from the first lines.

    Raises:
        DataError: nothing is there, a file is empty, damaged, without a needed column, of no known format, or does not
            go with the others; or it is a prepared dataset.
    """
    if is_prepared(Path(path)):
        raise DataError(f"{path}: is a prepared dataset; wanted a log, such as the one that it was made from")
    return InteractionSource(Path(path), config)


def hash_sources(source: InteractionSource) -> list[dict[str, str | int]]:
    """`name`, `bytes` and `sha256` of each file.

    Raises:
        DataError: a file cannot be read.
    """
    return hash_files(source.files)


def with_string_ids(config: ReadConfig, column: str) -> ReadConfig:
    """The settings after `MixedIds`: this column's ids are texts."""
    is_user = column == "user_id"
    return dataclasses.replace(config, user_ids="str") if is_user else dataclasses.replace(config, item_ids="str")


def read_interactions(path: Path, config: ReadConfig) -> ReadResult:
    """The interactions of a source, all in memory; see `open_interactions`.

    Raises:
        DataError: as there, or every time lies in the future.
    """
    try:
        source = open_interactions(path, config)
        chunks = list(source.chunks())
    except MixedIds as mixed:
        return read_interactions(path, with_string_ids(config, mixed.column))
    interactions = pl.concat([chunk.interactions for chunk in chunks])
    num_clamped = 0
    if source.order == "time":
        interactions = clamp(interactions, str(path))
        num_clamped = int(interactions["is_clamped"].sum())
    rejected = pl.concat([chunk.rejected for chunk in chunks])
    num_good = sum(chunk.num_good for chunk in chunks)
    counts = {"lines": num_good + rejected.height, "good": num_good, "rejected": rejected.height}
    return ReadResult(
        interactions=interactions,
        rejected=rejected,
        order=source.order,
        user_kind=source.user_kind,
        item_kind=source.item_kind,
        time_unit=source.time_unit,
        counts=counts | {"events": interactions.height, "clamped": num_clamped},
        sources=hash_sources(source),
        notes=source.notes,
    )


def clamp(interactions: pl.DataFrame, where: str) -> pl.DataFrame:
    """The times in the future set back to the latest credible one of the source.

    Raises:
        DataError: no time is credible.
    """
    if not interactions["is_clamped"].any():
        return interactions
    latest = interactions["timestamp"].max()
    if latest is None:
        raise DataError(
            f"{where}: every time lies in the future; check the clock, or set read.time_unit and read.latest_time"
        )
    return interactions.with_columns(pl.col("timestamp").fill_null(latest))

"""A table of items, joined to the order of the vocabulary."""

import dataclasses
from pathlib import Path

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.item_columns import (
    AVAILABILITY,
    availability,
    availability_name,
    broken_number,
    column_name,
    typed_column,
)
from recsys.features.formats.item_files import RawItems, read_item_file
from recsys.features.formats.quarantine import CONTROL
from recsys.features.formats.raw import LINE
from recsys.features.formats.source import SourceFile, list_files
from recsys.features.schema import ALIASES, ReadConfig, plain_name, shown
from recsys.features.vocabulary import Vocabulary

RESERVED = ("item_id", "item_index")


@dataclasses.dataclass(frozen=True)
class ItemsResult:
    """A table of items, read.

    Attributes:
        table: `item_id` (String) first, then the source's other columns, typed; see `formats.item_columns`.
        rejected: `file` (name), `line`, `reason`, `text`.
        num_lines: data lines: rows of `table` and rejected ones.
        notes: what was chosen and a reader of the log should know.
    """

    table: pl.DataFrame
    rejected: pl.DataFrame
    num_lines: int
    notes: list[str]


def read_items(path: Path, config: ReadConfig) -> ItemsResult:
    """The items of a source.

    Args:
        path: a file, a folder or a glob; CSV, TSV, RecBole `.item`, MovieLens `::`, JSONL, Parquet, or one JSON object
            `{item: [attributes]}`; plain, gzip or zstd.
        config: how to read; format, separator, encoding, header, names, `columns.item_id` and `max_rejected_share`.

    Raises:
        DataError: the source cannot be read, names no item column, holds vectors that are ragged or not finite, or too
            many of its lines are bad.
    """
    try:
        return _read(Path(path), config)
    except DataError as error:  # the same readers, another group of settings
        raise DataError(str(error).replace("read.", "items_read.").replace("items_items_", "items_")) from error


def join_items(table: pl.DataFrame, items: Vocabulary) -> tuple[pl.DataFrame, dict[str, int]]:
    """One row an item of the vocabulary, in its order, and how the table fits.

    Args:
        table: as `read_items` gives it.
        items: V items.

    Returns:
        `item_index` (Int64, 1..V), `item_id` of the vocabulary's kind, and the table's columns, null where it lacks
        the item; and the counts `described`, `not_described`, `not_in_vocabulary`, `repeated`.
    """
    raw = items.decode(range(1, len(items) + 1))
    keys = pl.Series("item_id", [str(item) for item in raw], pl.String)
    distinct = table.unique("item_id", keep="first", maintain_order=True)
    index = pl.DataFrame({"item_index": pl.Series(range(1, len(items) + 1), dtype=pl.Int64), "item_id": keys})
    joined = index.join(distinct, on="item_id", how="left", maintain_order="left")
    described = int(keys.is_in(distinct["item_id"].implode()).sum())
    counts = {
        "described": described,
        "not_described": len(items) - described,
        "not_in_vocabulary": distinct.height - described,
        "repeated": table.height - distinct.height,
    }
    return joined.with_columns(item_id=pl.Series(raw)), counts


def _read(path: Path, config: ReadConfig) -> ItemsResult:
    files, notes = list_files(path)
    parts = [_judged(file, read_item_file(file, config), config, notes) for file in files]
    notes += _split_types(files, [rows for rows, _ in parts])
    table = pl.concat([rows for rows, _ in parts], how="diagonal_relaxed")
    rejected = pl.concat([bad for _, bad in parts])
    num_lines = table.height + rejected.height
    if rejected.height > config.max_rejected_share * num_lines:
        first = "; ".join(f"{file}:{line}: {reason}" for file, line, reason, _ in rejected.head(3).iter_rows())
        raise DataError(
            f"{path}: {rejected.height:,} of {num_lines:,} items rejected, more than "
            f"read.max_rejected_share={config.max_rejected_share}; first: {first}; mend the source, or raise the share"
        )
    described = [name for name in table.columns if name not in RESERVED]
    if not described:
        notes.append("the table describes nothing: it holds item_id alone")
    return ItemsResult(table, rejected, num_lines, notes)


def _split_types(files: list[SourceFile], tables: list[pl.DataFrame]) -> list[str]:
    """What to tell of columns that are numbers in one file and text in another."""
    kinds: dict[str, dict[str, str]] = {}
    for file, rows in zip(files, tables, strict=True):
        for name, dtype in rows.schema.items():
            if dtype == pl.String and rows[name].null_count() < rows.height or dtype.is_numeric():
                kinds.setdefault(name, {}).setdefault("text" if dtype == pl.String else "numbers", file.name)
    return [
        f"column {name} is text: it holds numbers in {found['numbers']}, but text in {found['text']}"
        for name, found in kinds.items()
        if len(found) > 1
    ]


def _judged(file: SourceFile, raw: RawItems, config: ReadConfig, notes: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The usable rows of a file, typed, and its rejected lines."""
    rows = raw.rows
    name = _id_column(rows.columns[1:], config, str(file.path), notes)
    ids, reason = _ids(rows[name])
    columns: dict[str, pl.Series] = {}
    for column in rows.columns[1:]:
        ours = availability_name(column)
        if column == name or column in RESERVED:
            continue
        if ours is not None and ours not in columns:
            columns[ours], problem = availability(rows[column], ours)
            reason = reason.zip_with(reason.is_not_null(), problem)
        else:
            columns[column_name(column)] = rows[column]
    if "available_from" in columns and "available_until" in columns:
        is_late = (columns["available_from"] > columns["available_until"]).fill_null(value=False)
        later = pl.Series(["available_from is later than available_until"]).new_from_index(0, len(is_late))
        reason = reason.zip_with(reason.is_not_null() | ~is_late, later)
    is_bad = reason.is_not_null()
    lines = rows[LINE].filter(~is_bad)
    kept = [ids.alias("item_id").filter(~is_bad)]
    for key, raw_values in columns.items():
        values = raw_values.filter(~is_bad)
        if key not in AVAILABILITY:  # a row that is set aside has no say in the type of a column
            told_name, values = values.name, typed_column(values, str(file.path), lines)
            notes += broken_number(values, told_name, file.name, lines)
        kept.append(values.alias(key))
    frame = pl.DataFrame(kept)
    texts = pl.Series("text", raw.texts, pl.String).filter(is_bad)
    bad = pl.DataFrame([rows[LINE].filter(is_bad).alias("line"), reason.filter(is_bad).alias("reason"), texts])
    rejected = pl.concat([raw.rejected, bad]).sort("line", maintain_order=True)
    return frame, rejected.select(pl.lit(file.name).alias("file"), pl.all())


def _ids(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Ids as texts, and why a row has none."""
    if raw.dtype.is_float():
        whole = raw.cast(pl.Int64, strict=False)
        ids = whole.set((whole.cast(pl.Float64) != raw).fill_null(value=False), None).cast(pl.String)
        no_id = pl.when(pl.col("raw").is_not_null() & pl.col("id").is_null()).then(pl.lit("item_id is no integer"))
    else:
        ids = raw.cast(pl.String, strict=False).str.strip_chars()
        no_id = pl.when(pl.col("id").str.contains(CONTROL)).then(pl.lit("item_id holds a control character"))
    frame = pl.DataFrame({"raw": raw, "id": ids})
    is_empty = pl.col("id").is_null() | (pl.col("id") == "")
    reason = frame.select(reason=no_id.when(is_empty).then(pl.lit("item_id is empty"))).to_series()
    return ids, reason


def _id_column(found: list[str], config: ReadConfig, where: str, notes: list[str]) -> str:
    told = config.columns.get("item_id")
    if told is not None and told in found:
        return told
    fitting = [name for alias in (*ALIASES["item_id"], "id") for name in found if plain_name(name) == alias]
    if told is not None or not fitting:
        first = found[0] if found else "NAME"
        missing = f"no column {told!r}" if told is not None else "no column for item_id"
        raise DataError(f"{where}: {missing}; found {shown(found)}; name it: read.columns.item_id={shown([first])}")
    if len(fitting) > 1:
        others = f"not from {', '.join(fitting[1:])}; read.columns.item_id={fitting[1]} reads the other"
        notes.append(f"item_id is read from column {fitting[0]}, {others}".replace("read.c", "items_read.c"))
    return fitting[0]

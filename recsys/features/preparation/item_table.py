"""A table of items, joined to the order of the vocabulary."""

from pathlib import Path

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.detect import MOVIELENS_SEPARATOR, is_parquet, separator_of, text_format
from recsys.features.formats.raw import LINE, TEXT
from recsys.features.formats.separated import read_separated
from recsys.features.formats.source import Source, read_lines, read_source
from recsys.features.schema import ALIASES, ReadConfig, plain_name
from recsys.features.vocabulary import Vocabulary

MOVIELENS_ITEM_NAMES = ("item_id", "title", "genres")
EXCLUDED = (LINE, TEXT)


def read_items(path: Path, config: ReadConfig) -> tuple[pl.DataFrame, int]:
    """The table with its id column first, called `item_id` (String), and the number of malformed lines left out.

    Args:
        path: CSV, TSV, MovieLens `::`, JSONL or Parquet.
        config: how to read it; only format, separator, encoding, header, names and columns matter.

    Raises:
        DataError: the file cannot be read or names no item column.
    """
    source = read_source(path)
    try:
        frame, num_rejected = _read_frame(source, config)
    except DataError as error:  # the same readers, another group of settings
        raise DataError(str(error).replace("set read.", "set items_read.")) from error
    name = _id_column(frame.columns, config, str(path))
    others = [column for column in frame.columns if column not in (name, "item_id", "item_index")]
    ids = pl.col(name).cast(pl.String).alias("item_id")
    table = frame.select(ids, *(_typed(frame[column]) for column in others))
    is_named = table["item_id"].is_not_null() & (table["item_id"] != "")
    return table.filter(is_named), num_rejected + int((~is_named).sum())


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


def _read_frame(source: Source, config: ReadConfig) -> tuple[pl.DataFrame, int]:
    try:
        if is_parquet(source, config):
            return pl.read_parquet(source.data), 0
        lines = read_lines(source, config)
        kind = text_format(source, lines, config)
        if kind == "jsonl":
            return pl.read_ndjson(lines.text.str.join("\n").item().encode(), infer_schema_length=None), 0
    except pl.exceptions.PolarsError as error:
        what = str(error).splitlines()[0]
        raise DataError(f"{source.path}: cannot be read as a table of items ({what}); mend the file") from error
    separator = MOVIELENS_SEPARATOR if kind == "movielens" else separator_of(lines, config)
    names = config.names
    if names is None and separator == MOVIELENS_SEPARATOR and lines.text[0].count(separator) == 2:
        names = MOVIELENS_ITEM_NAMES
    header = names is None if config.header is None else config.header
    table = read_separated(source, lines, separator, ReadConfig(header=header, names=names, columns=config.columns))
    return table.rows.drop(EXCLUDED), table.rejected.height


def _id_column(found: list[str], config: ReadConfig, where: str) -> str:
    if "item_id" in config.columns and config.columns["item_id"] in found:
        return config.columns["item_id"]
    known = ("itemid", *ALIASES["item_id"], "id")
    match = next((name for alias in known for name in found if plain_name(name) == alias), None)
    if match is None:
        first = found[0] if found else "NAME"
        told = f"found {', '.join(found)}; name it: items_read.columns.item_id={first}"
        raise DataError(f"{where}: no column for item_id; {told}")
    return match


def _typed(column: pl.Series) -> pl.Series:
    """A text column of numbers as numbers, any other as it is."""
    if column.dtype != pl.String:
        return column
    filled = column.set(column == "", None)
    for dtype in (pl.Int64, pl.Float64):
        numbers = filled.cast(dtype, strict=False)
        if numbers.null_count() == filled.null_count() and numbers.count():
            return numbers
    return filled

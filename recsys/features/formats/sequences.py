"""Lines of "user item item …": one user a line, items oldest first."""

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, TEXT, RawTable
from recsys.features.formats.separated import number_lines, reject_unusable
from recsys.features.formats.source import Lines, Source


def read_sequences(source: Source, lines: Lines) -> RawTable:
    """One row an event; every row of a line has the line's number. The order is the order of the rows.

    Raises:
        DataError: the file has no line.
    """
    if lines.text.is_empty():
        raise DataError(f"{source.path}: is empty; wanted lines of 'user item item …'")
    numbered, unusable = reject_unusable(number_lines(lines), lines)
    tokens = pl.col(TEXT).str.extract_all(r"\S+")
    split = numbered.with_columns(tokens.alias("tokens"))
    is_short = pl.col("tokens").list.len() < 2
    reason = pl.lit("missing fields: a user without items").alias("reason")
    short = split.filter(is_short).select(pl.col(LINE).alias("line"), reason, pl.col(TEXT).alias("text"))
    events = split.filter(~is_short).select(
        LINE, TEXT, pl.col("tokens").list.first().alias("user_id"), pl.col("tokens").list.slice(1).alias("item_id")
    )
    rows = events.explode("item_id")
    return RawTable(["user_id", "item_id"], rows, pl.concat([unusable, short]).sort("line"))

"""CSV, TSV and MovieLens `::` lines: fields by a separator, line numbers exact, nothing dropped.

Lines without quotes are split by polars, all at once; a record that holds a quote goes through the csv module, which
alone knows quoted separators and quoted line ends.
"""

import csv
import json
from collections.abc import Sequence

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.detect import MOVIELENS_SEPARATOR
from recsys.features.formats.quoted import QUOTE, read_quoted
from recsys.features.formats.raw import LINE, TEXT, RawTable
from recsys.features.formats.source import Lines, Source
from recsys.features.schema import MOVIELENS_NAMES, ReadConfig, names_a_column


def read_separated(source: Source, lines: Lines, separator: str, config: ReadConfig) -> RawTable:
    """The fields of each data line.

    Args:
        source: for messages.
        lines: as read.
        separator: one character, or `::`.
        config: names and header.

    Raises:
        DataError: the first line is no header and nothing names the columns, or there is no data line.
    """
    names, has_header = _names(source, lines, separator, config)
    numbered = number_lines(lines).slice(int(has_header))
    if numbered.is_empty():
        raise DataError(f"{source.path}: has a header and no data; wanted at least one line of data")
    fields = [f"field {number}" for number in range(len(names))]
    rejected, quoted = [], None
    if separator != MOVIELENS_SEPARATOR and numbered[TEXT].str.contains(QUOTE, literal=True).any():
        quoted = read_quoted(numbered, separator, fields, set(lines.undecodable.tolist()))
        numbered = numbered.filter(~quoted.is_taken)
        rejected.append(quoted.rejected)
    numbered, unusable = reject_unusable(numbered, lines)
    rows, ragged = _split_fields(numbered, separator, fields)
    if quoted is not None:
        rows = pl.concat([rows, quoted.good]).sort(LINE)
    rows = rows.rename(dict(zip(fields, names, strict=True)))
    return RawTable(names, rows, pl.concat([*rejected, unusable, ragged]).sort("line"))


def number_lines(lines: Lines) -> pl.DataFrame:
    """LINE (Int64, from 1) and TEXT of each line."""
    frame = lines.text.rename(TEXT).to_frame().with_row_index(LINE, offset=1)
    return frame.select(pl.col(LINE).cast(pl.Int64), TEXT)


def reject_unusable(numbered: pl.DataFrame, lines: Lines) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The lines that hold text, and those that are blank or undecodable, with the reason."""
    is_undecodable = pl.col(LINE).is_in(lines.undecodable.tolist())
    is_blank = pl.col(TEXT).str.strip_chars() == ""
    reason = pl.when(is_undecodable).then(pl.lit("bytes that are not UTF-8")).otherwise(pl.lit("empty line"))
    is_unusable = (is_undecodable | is_blank) if len(lines.undecodable) else is_blank
    rejected = numbered.filter(is_unusable).select(
        pl.col(LINE).alias("line"), reason.alias("reason"), pl.col(TEXT).alias("text")
    )
    return (numbered.filter(~is_unusable) if rejected.height else numbered), rejected


def _names(source: Source, lines: Lines, separator: str, config: ReadConfig) -> tuple[list[str], bool]:
    first = _header_fields(lines.text[0], separator)
    has_header = names_a_column(first, config) if config.header is None else config.header
    if config.names is not None or has_header:
        names = first if config.names is None else list(config.names)
        repeated = [name for number, name in enumerate(names) if name in names[:number]]
        if repeated:
            raise DataError(f"{source.path}: column {repeated[0]!r} occurs twice; rename one of them")
        return names, has_header
    if separator == MOVIELENS_SEPARATOR and len(first) == len(MOVIELENS_NAMES):
        return list(MOVIELENS_NAMES), False
    example = MOVIELENS_NAMES if len(first) == len(MOVIELENS_NAMES) else ("user_id", "item_id", "timestamp")
    raise DataError(
        f"{source.path}: no column for user_id; line 1 names no known column, found {', '.join(first)}; name it: "
        f"read.columns.user_id={first[0]}, or, where line 1 is data: read.names={json.dumps(example[: len(first)])}"
    )


def _header_fields(line: str, separator: str) -> list[str]:
    if separator == MOVIELENS_SEPARATOR or QUOTE not in line:
        return [field.strip() for field in line.split(separator)]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator))]


def _split_fields(plain: pl.DataFrame, separator: str, fields: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with exactly these fields, and the others with the reason."""
    split = pl.col(TEXT).str.splitn(separator, len(fields)).struct.rename_fields(fields)
    rows = plain.with_columns(split.alias("fields")).unnest("fields")
    is_short = pl.col(fields[-1]).is_null()
    is_long = pl.col(fields[-1]).str.contains(separator, literal=True)
    found = pl.col(TEXT).str.count_matches(separator, literal=True) + 1
    kind = pl.when(is_short).then(pl.lit("missing fields: ")).otherwise(pl.lit("extra fields: "))
    reason = pl.concat_str([kind, found.cast(pl.String), pl.lit(f" of {len(fields)}")])
    is_ragged = is_short | is_long
    ragged = rows.filter(is_ragged).select(
        pl.col(LINE).alias("line"), reason.alias("reason"), pl.col(TEXT).alias("text")
    )
    rows = rows.filter(~is_ragged) if ragged.height else rows
    return rows.select(LINE, TEXT, *(pl.col(field).str.strip_chars() for field in fields)), ragged

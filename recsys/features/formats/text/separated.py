"""CSV, TSV and MovieLens `::` lines: fields by a separator, line numbers exact, nothing dropped.

A block whose every line has its fields and whose every quote opens or closes one goes through the CSV parser of polars,
all at once. Any other block is taken line by line: what holds no quote is split by polars, a record that holds one goes
through the csv module. Both ways give the same rows.
"""

import csv
import json
from collections.abc import Mapping, Sequence

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, TEXT, RawTable, rejected_frame
from recsys.features.formats.source import SourceFile
from recsys.features.formats.text.blocks import Block
from recsys.features.formats.text.clean import read_clean
from recsys.features.formats.text.detect import MOVIELENS_SEPARATOR
from recsys.features.formats.text.lines import number_lines, reject_unusable
from recsys.features.formats.text.quoted import QUOTE, read_quoted
from recsys.features.schema import MOVIELENS_NAMES, ReadConfig, names_a_column, shown


class SeparatedParser:
    """The fields of each data line of one file."""

    is_sequences = False

    def __init__(self, file: SourceFile, head: Block, separator: str, config: ReadConfig) -> None:
        """Find the columns.

        Args:
            file: for messages.
            head: the first lines.
            separator: one character, or `::`.
            config: names and header.

        Raises:
            DataError: the first line is no header and nothing names the columns.
        """
        self.separator = separator
        first = head.data[: head.data.index(b"\n")].decode()
        self.names, self.has_header = _names(file, first, separator, config)

    def parse(self, block: Block, wanted: Mapping[str, str]) -> tuple[RawTable, int]:
        """The rows of a block, and how many of its bytes they took: a record that is not at its end yet is left.

        Args:
            block: consecutive lines.
            wanted: our names, and the columns to give.
        """
        skipped = block.data.index(b"\n") + 1 if self.has_header and block.first_line == 1 else 0
        data = block.from_byte(skipped) if skipped else block
        if not data.data:
            return RawTable(self._empty(), rejected_frame([]), _no_text), skipped
        clean = read_clean(data, self.separator, self.names, list(dict.fromkeys(wanted.values())))
        table, used = clean or self.read_line_by_line(data)
        return table, skipped + used

    def _empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema={LINE: pl.Int64} | dict.fromkeys(self.names, pl.String))

    def read_line_by_line(self, block: Block) -> tuple[RawTable, int]:
        """The slow and exact way: every column of data lines of any kind, and how many bytes they took."""
        numbered, used = number_lines(block), len(block.data)
        fields = [f"field {number}" for number in range(len(self.names))]
        rejected, quoted = [], None
        is_quoted = self.separator != MOVIELENS_SEPARATOR and QUOTE.encode() in block.data
        if is_quoted:
            quoted = read_quoted(numbered, self.separator, fields, block.undecodable, is_last=block.is_last)
            if quoted.num_lines < numbered.height:
                used = int(block.line_starts()[quoted.num_lines])
            numbered = numbered.filter(~quoted.is_taken).filter(pl.col(LINE) < block.first_line + quoted.num_lines)
            rejected.append(quoted.rejected)
        numbered, unusable = reject_unusable(numbered, block)
        rows, ragged = _split_fields(numbered, self.separator, fields)
        if quoted is not None:
            rows = pl.concat([rows, quoted.good]).sort(LINE)
        texts = rows[TEXT]
        rows = rows.drop(TEXT).rename(dict(zip(fields, self.names, strict=True)))
        return RawTable(rows, pl.concat([*rejected, unusable, ragged]).sort("line"), texts.gather), used


def _no_text(rows: pl.Series) -> pl.Series:
    return rows.cast(pl.String)


def _names(file: SourceFile, line: str, separator: str, config: ReadConfig) -> tuple[list[str], bool]:
    first = _header_fields(line, separator)
    has_header = names_a_column(first, config) if config.header is None else config.header
    if config.names is not None or has_header:
        names = first if config.names is None else list(config.names)
        repeated = [name for number, name in enumerate(names) if name in names[:number]]
        if repeated:
            raise DataError(f"{file.path}: column {shown(repeated[:1])!r} occurs twice; rename one of them")
        return names, has_header
    if separator == MOVIELENS_SEPARATOR and len(first) == len(MOVIELENS_NAMES):
        return list(MOVIELENS_NAMES), False
    example = MOVIELENS_NAMES if len(first) == len(MOVIELENS_NAMES) else ("user_id", "item_id", "timestamp")
    told = json.dumps(example[: len(first)])
    raise DataError(
        f"{file.path}: no column for user_id; line 1 names no known column, found {shown(first)}; name it: "
        f"read.columns.user_id={shown(first[:1])}, or, where line 1 is data: read.names={told}"
    )


def _header_fields(line: str, separator: str) -> list[str]:
    if len(separator) > 1 or QUOTE not in line:
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

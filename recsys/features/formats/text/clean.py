"""Separated lines at the speed of the CSV parser of polars, where that is known to give what the lines mean.

A block is clean when its quotes, if any, open right after a separator or a line end and close right before one, and
when it holds just as many separators outside quotes as its records need. Anything else is left to the slower way.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.features.formats.raw import LINE, RawTable, rejected_frame
from recsys.features.formats.text.blocks import Block
from recsys.features.formats.text.quoted import MAX_RECORD_LINES

BLANKS = " \t\v\f\r"
QUOTE, LINE_FEED, ONE_BYTE = ord('"'), ord("\n"), "\x1f"


def read_clean(
    block: Block, separator: str, names: Sequence[str], wanted: Sequence[str]
) -> tuple[RawTable, int] | None:
    """The wanted columns of the block's records and how many bytes they took, or None where it is not clean.

    Args:
        block: data lines alone.
        separator: of any length; quotes have a meaning beside one of one byte alone.
        names: all columns.
        wanted: those to give, as String, without blanks around.
    """
    if block.undecodable or len(names) < 2:
        return None
    data, mark = block.data, separator.encode()
    if len(mark) == 1 and b'"' in data:
        return _quoted(block, mark, names, wanted)
    num_lines = data.count(b"\n")
    if data.count(mark) != num_lines * (len(names) - 1):
        return None
    if len(mark) > 1:
        if ONE_BYTE.encode() in data:
            return None
        data, separator = data.replace(mark, ONE_BYTE.encode()), ONE_BYTE
    frame = _parse(data, separator, None, names, wanted)
    if frame is None or frame.height != num_lines or _may_be_blank(frame, separator):
        return None
    lines = pl.int_range(block.first_line, block.first_line + num_lines, eager=True).alias(LINE)
    table = RawTable(_with_lines(frame, lines), rejected_frame([]), lambda rows: block.lines().gather(rows))
    return table, len(block.data)


def _quoted(block: Block, mark: bytes, names: Sequence[str], wanted: Sequence[str]) -> tuple[RawTable, int] | None:
    codes = np.frombuffer(block.data, np.uint8)
    is_quote = codes == QUOTE
    # uint8 may wrap around: its last bit is all that counts.
    is_inside = (np.cumsum(is_quote, dtype=np.uint8) & 1).astype(bool)
    line_ends = np.flatnonzero(codes == LINE_FEED)
    ends = line_ends[~is_inside[line_ends]]
    if not len(ends):
        return None
    used = int(ends[-1]) + 1
    codes, is_quote, is_inside = codes[:used], is_quote[:used], is_inside[:used]
    line_numbers = np.searchsorted(line_ends, ends)
    starts = np.concatenate([np.zeros(1, np.int64), line_numbers[:-1] + 1])
    num_separators = np.count_nonzero((codes == mark[0]) & ~is_inside)
    is_clean = num_separators == len(ends) * (len(names) - 1) and _quotes_fit(codes, is_quote, is_inside, mark[0])
    if not is_clean or int((line_numbers - starts).max()) >= MAX_RECORD_LINES:
        return None
    frame = _parse(block.data[:used], mark.decode(), '"', names, wanted)
    if frame is None or frame.height != len(ends) or _may_be_blank(frame, mark.decode()):
        return None
    lines = pl.Series(LINE, starts + block.first_line)
    edges = np.concatenate([np.zeros(1, np.int64), ends + 1])
    return RawTable(_with_lines(frame, lines), rejected_frame([]), functools.partial(_texts, block.data, edges)), used


def _quotes_fit(
    codes: npt.NDArray[np.uint8], is_quote: npt.NDArray[np.bool_], is_inside: npt.NDArray[np.bool_], mark: int
) -> bool:
    """Whether each quote opens after a border or a quote, or closes before one."""
    quotes = np.flatnonzero(is_quote)
    is_border = np.zeros(256, bool)
    is_border[[QUOTE, LINE_FEED, mark]] = True
    opening, closing = quotes[is_inside[quotes]], quotes[~is_inside[quotes]]
    before = codes[np.maximum(opening - 1, 0)]
    return bool((is_border[before] | (opening == 0)).all() and is_border[codes[closing + 1]].all())


def _parse(
    data: bytes, separator: str, quote: str | None, names: Sequence[str], wanted: Sequence[str]
) -> pl.DataFrame | None:
    # polars names the columns of a file without a header so, and takes a choice by these names alone.
    columns = [f"column_{number}" for number in range(1, len(names) + 1)]
    number_of = dict(zip(names, columns, strict=True))
    try:
        frame = pl.read_csv(
            data,
            has_header=False,
            separator=separator,
            quote_char=quote,
            schema=dict.fromkeys(columns, pl.String),
            columns=[number_of[name] for name in wanted],
        )
    except pl.exceptions.PolarsError:
        return None
    frame = frame.select(pl.col(number_of[name]).alias(name) for name in wanted)
    if any(column.null_count() for column in frame):
        frame = frame.fill_null("")
    has_blank = any(blank != separator and blank.encode() in data for blank in BLANKS)
    is_padded = quote is not None or has_blank or not data.isascii()
    return frame.with_columns(pl.all().str.strip_chars()) if is_padded else frame


def _may_be_blank(frame: pl.DataFrame, separator: str) -> bool:
    """Whether a line could be blank although it has all its separators."""
    return not separator.strip() and bool((frame.to_series(0) == "").any())


def _with_lines(frame: pl.DataFrame, lines: pl.Series) -> pl.DataFrame:
    return frame.with_columns(lines.cast(pl.Int64)).select(LINE, *frame.columns)


def _texts(data: bytes, edges: npt.NDArray[np.int64], rows: pl.Series) -> pl.Series:
    """The whole lines of these rows, as they stand in the file."""
    return pl.Series([data[edges[row] : edges[row + 1] - 1].decode() for row in rows.to_list()], dtype=pl.String)

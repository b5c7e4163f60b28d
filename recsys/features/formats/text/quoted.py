"""CSV records that hold quotes, through the csv module: quoted separators, quoted line ends, exact line numbers."""

import csv
import dataclasses
from collections.abc import Iterator, Sequence

import polars as pl

from recsys.features.formats.raw import LINE, TEXT, rejected_frame

QUOTE = '"'
# A quote that is never closed must not swallow the rest of the file.
MAX_RECORD_LINES = 1000


@dataclasses.dataclass(frozen=True)
class Records:
    """What quotes hold together.

    Attributes:
        good: LINE of the record's first line, TEXT of all its lines, and one column a field.
        rejected: `line`, `reason`, `text`.
        is_taken: (n,) Boolean, lines that belong to either.
        num_lines: lines that are decided; the rest waits for the lines of the next block.
    """

    good: pl.DataFrame
    rejected: pl.DataFrame
    is_taken: pl.Series
    num_lines: int


def read_quoted(
    numbered: pl.DataFrame, separator: str, names: Sequence[str], undecodable: frozenset[int], *, is_last: bool
) -> Records:
    """The records that start on a line with a quote.

    Args:
        numbered: LINE and TEXT of consecutive lines.
        separator: one character.
        names: the fields each record must have.
        undecodable: numbers of lines that are no text.
        is_last: whether no line follows; else a record that these lines do not end is left for later.
    """
    starts = numbered[TEXT].str.contains(QUOTE, literal=True).arg_true().to_list()
    texts = numbered[TEXT].to_list() if starts else []
    offset = int(numbered[LINE][0])
    good: list[tuple[str | int, ...]] = []
    bad: list[tuple[int, str, str]] = []
    is_taken = [False] * len(numbered)
    done, num_lines = 0, len(numbered)
    for first in starts:
        if first < done:
            continue
        fields, count = _read_record(texts, first, separator, len(names))
        if count is None and not is_last:
            num_lines = first
            break
        done = first + (count or 1)
        is_taken[first:done] = [True] * (done - first)
        line, text = offset + first, "\n".join(texts[first:done])
        reason = _reason(fields, len(names), not undecodable.isdisjoint(range(line, line + done - first)))
        if fields is None or reason is not None:
            bad.append((line, reason or "", text))
        else:
            good.append((line, text, *fields))
    schema = {LINE: pl.Int64, TEXT: pl.String} | dict.fromkeys(names, pl.String)
    frame = pl.DataFrame(good, schema=schema, orient="row").with_columns(pl.col(names).str.strip_chars())
    return Records(frame, rejected_frame(bad), pl.Series(is_taken, dtype=pl.Boolean), num_lines)


def _reason(fields: list[str] | None, width: int, is_undecodable: bool) -> str | None:
    if is_undecodable:
        return "bytes that are not UTF-8"
    if fields is None:
        return "quotes that do not close a field"
    if len(fields) != width:
        return f"{'missing' if len(fields) < width else 'extra'} fields: {len(fields)} of {width}"
    return None


def _read_record(texts: Sequence[str], first: int, separator: str, width: int) -> tuple[list[str] | None, int | None]:
    """Fields of the record that starts at this line, and how many lines it takes.

    No fields and one line if it is broken; None lines if more of them could close it.
    """
    taken, is_over = 0, False

    def feed() -> Iterator[str]:
        nonlocal taken, is_over
        for row in range(first, min(first + MAX_RECORD_LINES, len(texts))):
            taken += 1
            yield texts[row] + "\n"
        is_over = True

    try:
        fields = next(csv.reader(feed(), delimiter=separator, strict=True))
    except (csv.Error, StopIteration):
        return None, None if is_over and taken < MAX_RECORD_LINES else 1
    if taken > 1 and len(fields) != width:  # a quote that another line's quote happens to close
        return None, 1
    return fields, taken

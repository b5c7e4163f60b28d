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
    """

    good: pl.DataFrame
    rejected: pl.DataFrame
    is_taken: pl.Series


def read_quoted(numbered: pl.DataFrame, separator: str, names: Sequence[str], undecodable: set[int]) -> Records:
    """The records that start on a line with a quote.

    Args:
        numbered: LINE and TEXT of consecutive lines.
        separator: one character.
        names: the fields each record must have.
        undecodable: numbers of lines that are no text.
    """
    starts = numbered[TEXT].str.contains(QUOTE, literal=True).arg_true().to_list()
    texts = numbered[TEXT].to_list() if starts else []
    offset = int(numbered[LINE][0])
    good: list[tuple[str | int, ...]] = []
    bad: list[tuple[int, str, str]] = []
    is_taken = [False] * len(numbered)
    done = 0
    for first in starts:
        if first < done:
            continue
        fields, count = _read_record(texts, first, separator, len(names))
        done = first + count
        is_taken[first:done] = [True] * count
        line, text = offset + first, "\n".join(texts[first:done])
        reason = _reason(fields, len(names), not undecodable.isdisjoint(range(line, line + count)))
        if fields is None or reason is not None:
            bad.append((line, reason or "", text))
        else:
            good.append((line, text, *fields))
    schema = {LINE: pl.Int64, TEXT: pl.String} | dict.fromkeys(names, pl.String)
    return Records(pl.DataFrame(good, schema=schema, orient="row"), rejected_frame(bad), pl.Series(is_taken))


def _reason(fields: list[str] | None, width: int, is_undecodable: bool) -> str | None:
    if is_undecodable:
        return "bytes that are not UTF-8"
    if fields is None:
        return "quotes that do not close a field"
    if len(fields) != width:
        return f"{'missing' if len(fields) < width else 'extra'} fields: {len(fields)} of {width}"
    return None


def _read_record(texts: Sequence[str], first: int, separator: str, width: int) -> tuple[list[str] | None, int]:
    """Fields of the record that starts at this line, and how many lines it takes; no fields and one line if broken."""
    taken = 0

    def feed() -> Iterator[str]:
        nonlocal taken
        for row in range(first, min(first + MAX_RECORD_LINES, len(texts))):
            taken += 1
            yield texts[row] + "\n"

    try:
        fields = next(csv.reader(feed(), delimiter=separator, strict=True))
    except (csv.Error, StopIteration):
        return None, 1
    if taken > 1 and len(fields) != width:  # a quote that another line's quote happens to close
        return None, 1
    return [field.strip() for field in fields], taken

"""Raw rows: the fields of every data line as they stand in the file, and the lines that have no fields."""

import dataclasses
from collections.abc import Sequence

import polars as pl

# Beside the source's own columns, which may well be called `line` or `text`.
LINE, TEXT = "__line", "__text"
REJECTED_SCHEMA = {"line": pl.Int64, "reason": pl.String, "text": pl.String}


@dataclasses.dataclass(frozen=True)
class RawTable:
    """What a file holds, before its values are judged.

    Attributes:
        names: the source's column names.
        rows: one row a well-formed data line: LINE (Int64, from 1), the source's columns, and TEXT, the whole line,
            where the format has lines.
        rejected: `line`, `reason`, `text` of each malformed data line.
        typed_ids: of user_id and item_id those whose values are known to be texts, so that "12" stays a string.
    """

    names: list[str]
    rows: pl.DataFrame
    rejected: pl.DataFrame
    typed_ids: frozenset[str] = frozenset()


def rejected_frame(rows: Sequence[tuple[int, str, str]]) -> pl.DataFrame:
    """The table of (line, reason, text) rows."""
    return pl.DataFrame(list(rows), schema=REJECTED_SCHEMA, orient="row")

"""Raw rows: the fields of every data line as they stand in the file, and the lines that have no fields."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import polars as pl

from recsys.features.formats.source import SourceFile

# Beside the source's own columns, which may well be called `line` or `text`.
LINE, TEXT = "__line", "__text"
REJECTED_SCHEMA = {"line": pl.Int64, "reason": pl.String, "text": pl.String}


@dataclasses.dataclass(frozen=True)
class RawTable:
    """What a block of a file holds, before its values are judged.

    Attributes:
        rows: one row a well-formed data line: LINE (Int64, from 1), and at least the source's columns that have a
            meaning for us.
        rejected: `line`, `reason`, `text` of each malformed data line.
        texts: for the numbers of rows, their whole lines as they stand in the file.
        typed_ids: of user_id and item_id those whose values are known to be texts, so that "12" stays a string.
        missing: well-formed data lines without a value (null, NaN, the empty text) by the source's column, whether it
            has a meaning for us or not; where they are asked for.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    texts: Callable[[pl.Series], pl.Series]
    typed_ids: frozenset[str] = frozenset()
    missing: Mapping[str, int] = dataclasses.field(default_factory=dict)


class OpenedFile(Protocol):
    """A file whose format and columns are known.

    Attributes:
        file: where it lies.
        names: the source's column names.
        resolved: our column names, and the source's for each that it has.
        notes: what was chosen and a reader of the log should know.
        num_rows_estimate: events; exact where the format counts them.
        is_sequences: whether a line holds many events.
    """

    @property
    def file(self) -> SourceFile: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def resolved(self) -> dict[str, str]: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def num_rows_estimate(self) -> int: ...
    @property
    def is_sequences(self) -> bool: ...

    def tables(self, rows: int | None, *, counts_missing: bool = False) -> Iterator[RawTable]:
        """The file in blocks of about this many rows; None: in blocks whose size is always the same and small.

        Args:
            rows: of a block.
            counts_missing: whether every column is read to fill `RawTable.missing`.
        """


def rejected_frame(rows: Sequence[tuple[int, str, str]]) -> pl.DataFrame:
    """The table of (line, reason, text) rows."""
    return pl.DataFrame(list(rows), schema=REJECTED_SCHEMA, orient="row")

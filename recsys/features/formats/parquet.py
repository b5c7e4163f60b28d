"""Parquet: typed columns, batch by batch; a line number is a row number, from 1."""

import dataclasses
import functools
import io
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, RawTable, rejected_frame
from recsys.features.formats.source import SourceFile, SourceStream
from recsys.features.schema import REQUIRED, ReadConfig, resolve_columns

MAGIC = b"PAR1"
HEAD_ROWS = 10_000
BUFFER_BYTES = 1 << 20
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


class OpenedParquet:
    """See `OpenedFile`."""

    is_sequences = False

    def __init__(self, file: SourceFile, config: ReadConfig) -> None:
        """Read the columns' names and types.

        Raises:
            DataError: the file is damaged, or a column is missing or of a type that cannot be used.
        """
        self.file = file
        opened = open_parquet(file)
        schema = opened.schema_arrow
        self.names = list(schema.names)
        self.resolved, self.notes = resolve_columns(self.names, config, str(file.path))
        self.num_rows_estimate = int(opened.metadata.num_rows)
        self._columns = list(dict.fromkeys(self.resolved.values()))
        sample = _frame(pa.Table.from_batches([], schema.remove_metadata()).select(self._columns))
        for ours in REQUIRED:
            _check_id(file, self.resolved[ours], sample[self.resolved[ours]].dtype)
        if "timestamp" in self.resolved and config.order != "rows":
            _check_time(file, self.resolved["timestamp"], sample[self.resolved["timestamp"]].dtype)

    def tables(self, rows: int | None, *, counts_missing: bool = False) -> Iterator[RawTable]:
        """See `OpenedFile`."""
        first_line = 1
        for batch in batches(self.file, self.names if counts_missing else self._columns, rows or HEAD_ROWS):
            table = self._table(batch.select(self._columns), first_line)
            missing = {name: _missing(batch.column(name)) for name in self.names} if counts_missing else {}
            yield dataclasses.replace(table, missing=missing)
            first_line += batch.num_rows

    def _table(self, batch: pa.RecordBatch, first_line: int) -> RawTable:
        frame = _frame(pa.Table.from_batches([batch]))
        for ours in REQUIRED:
            frame = frame.with_columns(_whole(frame[self.resolved[ours]]))
        lines = pl.int_range(first_line, first_line + frame.height, dtype=pl.Int64, eager=True).alias(LINE)
        rows, rejected = _decoded(frame.select(lines, *self._columns))
        typed = frozenset(ours for ours in REQUIRED if rows[self.resolved[ours]].dtype == pl.String)
        return RawTable(rows, rejected, functools.partial(_texts, rows), typed)


def open_parquet(file: SourceFile) -> Any:
    """The file, its metadata read.

    Raises:
        DataError: it is damaged or cut short.
    """
    try:
        with SourceStream(file) as stream:
            packed = io.BytesIO(stream.read_all()) if stream.packing else None
        # Read through a buffer: neither a row group as a whole nor the mapped file counts towards memory.
        return pq.ParquetFile(packed or str(file.path), pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError, ValueError) as error:
        _refuse_damaged(file, error)


def batches(file: SourceFile, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file, so many at a time, whatever its row groups.

    Raises:
        DataError: the file is damaged.
    """
    with open_parquet(file) as opened:
        try:
            yield from opened.iter_batches(batch_size=rows, columns=columns)
        except (pa.ArrowException, OSError, ValueError) as error:
            _refuse_damaged(file, error)


def _refuse_damaged(file: SourceFile, error: Exception) -> Any:
    if isinstance(error, DataError):
        raise error
    what = (str(error).splitlines() or [type(error).__name__])[0]
    raise DataError(f"{file.path}: Parquet file is damaged or cut short ({what}); fetch or copy it again") from error


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))


def _texts(rows: pl.DataFrame, numbers: pl.Series) -> pl.Series:
    """The rows as `column=value`: this format has no lines."""
    names = rows.columns[1:]
    chosen = rows.select(names)[numbers.to_list()]
    return pl.Series([", ".join(f"{n}={v}" for n, v in zip(names, row, strict=True)) for row in chosen.rows()])


def _missing(column: pa.Array) -> int:
    """How many values are null, no number, or the empty text."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    is_none = None
    if any(is_kind(column.type) for is_kind in TEXTS):
        is_none = pc.equal(pc.binary_length(column), 0)
    elif pa.types.is_floating(column.type):
        is_none = pc.is_nan(column)
    return int(column.null_count) + (0 if is_none is None else pc.sum(is_none).as_py() or 0)


def _whole(ids: pl.Series) -> pl.Series:
    """Decimals without a fraction, as Spark and Oracle write integers, as integers."""
    is_whole = isinstance(ids.dtype, pl.Decimal) and ids.dtype.scale == 0
    return ids.cast(pl.Int128) if is_whole else ids


def _decoded(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with bytes, as Impala writes texts, as texts, and those whose bytes are none."""
    columns = [rows[name] for name, dtype in rows.schema.items() if dtype == pl.Binary]
    if not columns:
        return rows, rejected_frame([])
    texts = [pl.Series(column.name, list(map(_text, column)), pl.String) for column in columns]
    is_bad = pl.repeat(value=False, n=rows.height, dtype=pl.Boolean, eager=True)
    for column, text in zip(columns, texts, strict=True):
        is_bad |= text.is_null() & column.is_not_null()
    names = rows.columns[1:]
    rejected = [
        (line, "bytes that are not UTF-8", ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True)))
        for line, *values in rows.filter(is_bad).rows()
    ]
    return rows.with_columns(texts).filter(~is_bad), rejected_frame(rejected)


def _text(value: bytes | None) -> str | None:
    """The text, or None where there is none."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _check_id(file: SourceFile, name: str, dtype: pl.DataType) -> None:
    is_whole = isinstance(dtype, pl.Decimal) and dtype.scale == 0
    if not (dtype.is_integer() or dtype.is_float() or is_whole or dtype in (pl.String, pl.Binary, pl.Null)):
        raise DataError(f"{file.path}: column {name} holds {dtype}; wanted integers or strings")


def _check_time(file: SourceFile, name: str, dtype: pl.DataType) -> None:
    if not (dtype.is_numeric() or dtype.is_temporal() or dtype in (pl.String, pl.Binary, pl.Null)):
        raise DataError(
            f"{file.path}: column {name} holds {dtype}; wanted numbers, texts, dates or datetimes; "
            "name the time column: read.columns.timestamp=NAME, or set read.order=rows"
        )

"""Parquet: typed columns; a line number is a row number, from 1."""

import io

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.raw import LINE, RawTable, rejected_frame
from recsys.features.formats.source import Source
from recsys.features.schema import REQUIRED, ReadConfig, resolve_columns


def read_parquet(source: Source, config: ReadConfig) -> RawTable:
    """The columns that have a meaning for us, with their types.

    Raises:
        DataError: the file is damaged or has no row, or a column is missing or of a type that cannot be used.
    """
    try:
        schema = pl.read_parquet_schema(io.BytesIO(source.data))
        resolved = resolve_columns(list(schema), config, str(source.path))
        frame = pl.read_parquet(io.BytesIO(source.data), columns=list(resolved.values()))
    except (pl.exceptions.PolarsError, OSError) as error:
        what = str(error).splitlines()[0]
        raise DataError(
            f"{source.path}: Parquet file is damaged or cut short ({what}); fetch or copy it again"
        ) from error
    if frame.is_empty():
        raise DataError(f"{source.path}: has columns and no row; wanted at least one event")
    frame = frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String))
    frame = frame.with_columns(_whole(frame[resolved[ours]]) for ours in REQUIRED)
    rows = frame.with_row_index(LINE, offset=1).with_columns(pl.col(LINE).cast(pl.Int64))
    rows, rejected = _decoded(rows)
    for ours in REQUIRED:
        _check_id(source, resolved[ours], rows[resolved[ours]].dtype)
    if "timestamp" in resolved and config.order != "rows":
        _check_time(source, resolved["timestamp"], rows[resolved["timestamp"]].dtype)
    typed = frozenset(ours for ours in REQUIRED if rows[resolved[ours]].dtype == pl.String)
    return RawTable(list(resolved.values()), rows, rejected, typed)


def _whole(ids: pl.Series) -> pl.Series:
    """Decimals without a fraction, as Spark and Oracle write integers, as integers."""
    is_whole = isinstance(ids.dtype, pl.Decimal) and ids.dtype.scale == 0
    return ids.cast(pl.Int128) if is_whole else ids


def _decoded(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows with bytes, as Impala writes texts, as texts, and those whose bytes are none."""
    columns = [rows[name] for name, dtype in rows.schema.items() if dtype == pl.Binary]
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


def _check_id(source: Source, name: str, dtype: pl.DataType) -> None:
    if not (dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Null)):
        raise DataError(f"{source.path}: column {name} holds {dtype}; wanted integers or strings")


def _check_time(source: Source, name: str, dtype: pl.DataType) -> None:
    if not (dtype.is_numeric() or dtype.is_temporal() or dtype in (pl.String, pl.Null)):
        raise DataError(
            f"{source.path}: column {name} holds {dtype}; wanted numbers, texts, dates or datetimes; "
            "name the time column: read.columns.timestamp=NAME, or set read.order=rows"
        )

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
    for ours in REQUIRED:
        _check_id(source, resolved[ours], frame[resolved[ours]].dtype)
    typed = frozenset(ours for ours in REQUIRED if frame[resolved[ours]].dtype == pl.String)
    rows = frame.with_row_index(LINE, offset=1).with_columns(pl.col(LINE).cast(pl.Int64))
    return RawTable(list(resolved.values()), rows, rejected_frame([]), typed)


def _check_id(source: Source, name: str, dtype: pl.DataType) -> None:
    if not (dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Null)):
        raise DataError(f"{source.path}: column {name} holds {dtype}; wanted integers or strings")

"""Columns of an items table: texts, numbers, categories, vectors and availability, each of one type.

| in the file | in the table |
| integers, floats | Int64, Float64 |
| `genres`, `categories`, `tags`, … with `|` between; RecBole's `token_seq`; lists of texts or integers | List(String) |
| lists of floats; RecBole's `float_seq` | Array(Float32, D): one length, finite, or null |
| `available_from`, `available_until` | Datetime("us", "UTC") |
"""

import re

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.times import detect_unit, iso_to_us, looks_like_times, numbers_of, parse_times, time_kind
from recsys.features.schema import plain_name

AVAILABILITY: dict[str, tuple[str, ...]] = {
    "available_from": ("availablefrom", "validfrom", "onlinefrom", "startsat"),
    "available_until": ("availableuntil", "availableto", "validuntil", "validto", "onlineuntil", "expiresat", "endsat"),
}
CATEGORIES = ("genre", "genres", "category", "categories", "tags", "tag", "attributes", "class", "keywords")
TEXTS = ("title", "name", "text", "description", "summary")
LATEST_US = iso_to_us("9999-12-31T23:59:59Z")
RECBOLE_TYPE = re.compile(r":(token|float|token_seq|float_seq)$")


def typed_column(column: pl.Series, where: str, lines: pl.Series) -> pl.Series:
    """The column, typed, under its name without RecBole's suffix.

    Args:
        column: raw values.
        where: the source's name, for messages.
        lines: the line of each row, for messages.

    Raises:
        DataError: vectors of several lengths, or with a value that is no finite number.
    """
    told = RECBOLE_TYPE.search(column.name)
    name = column_name(column.name)
    kind = told[1] if told else None
    column = column.rename(name)
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if isinstance(column.dtype, pl.List | pl.Array):
        return _listed(column, where, lines)
    if column.dtype != pl.String:
        return column
    filled = column.set(column == "", None)
    if kind == "float_seq":
        return _vectors(filled.str.split(" ").list.eval(pl.element().cast(pl.Float64, strict=False)), where, lines)
    if kind == "token_seq" and not plain_name(name).endswith(TEXTS):
        return filled.str.split(" ")
    if kind is None and plain_name(name) in CATEGORIES and filled.str.contains("|", literal=True).any():
        return filled.str.split("|")
    return filled if kind in ("token", "token_seq") else _number(filled)


def column_name(name: str) -> str:
    """The name without RecBole's suffix."""
    return RECBOLE_TYPE.sub("", name)


def broken_number(typed: pl.Series, told_name: str, file: str, lines: pl.Series) -> list[str]:
    """What to tell of a column of texts most of which are numbers: the first value that is none; nothing of others.

    Args:
        typed: a column that `typed_column` gave.
        told_name: its name in the file; a type that RecBole's suffix tells is no accident.
        file: the file's name, for the note.
        lines: the line of each row.
    """
    suffix = RECBOLE_TYPE.search(told_name)
    if typed.dtype != pl.String or suffix is not None and suffix[1] != "float":
        return []
    numbers = numbers_of(typed)
    is_other = typed.is_not_null() & (typed != "") & numbers.is_null()
    if not 0 < int(is_other.sum()) < numbers.count():
        return []
    line, value = lines.filter(is_other)[0], typed.filter(is_other)[0]
    told = f"column {typed.name} is text: {value[:40]!r} is no number"
    return [f"{file}:{line}: {told}, though {numbers.count():,} of {len(typed):,} values are"]


def availability(column: pl.Series, ours: str) -> tuple[pl.Series, pl.Series]:
    """The times as Datetime("us", "UTC"), null where there is none, and why a value is no time.

    Args:
        column: ISO texts, numbers, dates or datetimes.
        ours: `available_from` or `available_until`.
    """
    column = column.cast(pl.String) if column.dtype == pl.Null else column
    kind = time_kind(column)
    is_blank = column.is_null() | (column == "") if column.dtype == pl.String else column.is_null()
    if kind is None or not looks_like_times(column):
        us = pl.Series([None] * len(column), dtype=pl.Int64)
        problem = pl.Series([None if blank else f"{ours} is no time" for blank in is_blank], dtype=pl.String)
    else:
        unit = detect_unit(numbers_of(column)) if kind == "number" else None
        times = parse_times(column, kind, unit, LATEST_US)
        us = times.us
        problem = pl.Series([None] * len(column), dtype=pl.String) if times.problem is None else times.problem
        problem = problem.str.replace("timestamp", ours, literal=True)
        problem = problem.set(is_blank, None)
    return us.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").rename(ours), problem


def availability_name(name: str) -> str | None:
    """`available_from` or `available_until` where the column is called so, or like it."""
    return next((ours for ours, aliases in AVAILABILITY.items() if plain_name(name) in aliases), None)


def _number(column: pl.Series) -> pl.Series:
    """A text column of numbers as numbers, any other as it is."""
    for dtype in (pl.Int64, pl.Float64):
        numbers = column.cast(dtype, strict=False)
        if numbers.null_count() == column.null_count() and numbers.count():
            return numbers
    return column


def _listed(column: pl.Series, where: str, lines: pl.Series) -> pl.Series:
    inner = column.dtype.inner  # type: ignore[attr-defined]  # a List or an Array, by the caller
    column = column.arr.to_list() if isinstance(column.dtype, pl.Array) else column
    if inner.is_float():
        return _vectors(column, where, lines)
    if inner == pl.String or inner.is_integer() or inner in (pl.Categorical, pl.Enum, pl.Null):
        return column.cast(pl.List(pl.String))
    raise DataError(f"{where}: column {column.name} holds lists of {inner}; wanted lists of texts, integers or floats")


def _vectors(column: pl.Series, where: str, lines: pl.Series) -> pl.Series:
    """One length and finite numbers alone, as float32."""
    lengths = column.list.len()
    width = lengths.drop_nulls().first()
    if width is None:
        return column.cast(pl.List(pl.Float32))
    assert isinstance(width, int)
    is_ragged = (lengths != width).fill_null(value=False)
    if is_ragged.any():
        line, found = lines.filter(is_ragged)[0], lengths.filter(is_ragged)[0]
        raise DataError(f"{where}:{line}: column {column.name} holds a vector of {found} numbers, before it {width}")
    narrow = column.cast(pl.List(pl.Float32))
    is_finite = narrow.list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
    if not is_finite.fill_null(value=True).all():
        line = lines.filter(~is_finite.fill_null(value=True))[0]
        told = "a vector with a value that is no finite number"
        raise DataError(f"{where}:{line}: column {column.name} holds {told}; mend it, or leave the vector out")
    return narrow.list.to_array(width)

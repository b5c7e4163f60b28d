"""Times of a log as int64 microseconds UTC.

Numbers have one unit for the whole source, told by magnitude; texts are ISO, with and without offset. A column is
judged block by block, so what its values are is told beforehand, from the first of them.
"""

import dataclasses
import datetime
from typing import Literal

import polars as pl

Unit = Literal["s", "ms", "us", "ns"]
TimeKind = Literal["type", "iso", "number"]

# Seconds of 1973-03; numbers below are no times of any log, but places in a sequence.
SMALLEST_TIME = 10**8
UNIT_BOUNDS: dict[Unit, tuple[int, int]] = {
    "s": (SMALLEST_TIME, 10**11),
    "ms": (10**11, 10**14),
    "us": (10**14, 10**17),
    "ns": (10**17, 2**63 - 1),
}
PER_SECOND: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
YEAR_10000_US = 253_402_300_800_000_000
NO_ISO_TIME = "timestamp is no ISO time, wanted 2020-12-31T10:00"

ISO = (
    r"^\s*(\d{4})-(\d{2})-(\d{2})"
    r"(?:[T ](\d{2}):(\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?\s*(Z|z|UTC|[+-]\d{2}:?\d{2}|[+-]\d{2})?)?\s*$"
)
ISO_SECONDS = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$"


@dataclasses.dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
        us: (n,) Int64, microseconds UTC; null where `problem` is not, and where the time lies in the future.
        problem: (n,) String, why a value is no time, or null; None: every value is one.
        is_clamped: (n,) Boolean, later than what is credible; None: none is.
    """

    us: pl.Series
    problem: pl.Series | None
    is_clamped: pl.Series | None


def time_kind(column: pl.Series) -> TimeKind | None:
    """What the values are; None where there is none."""
    if column.dtype.is_temporal():
        return "type"
    if is_empty(column).all():
        return None
    return "iso" if _is_text(column, numbers_of(column)) else "number"


def looks_like_times(column: pl.Series) -> bool:
    """Whether the values are times at all: ISO texts, typed times, or numbers of a time's magnitude."""
    if column.dtype.is_temporal():
        return True
    numbers = numbers_of(column)
    if _is_text(column, numbers):
        return True
    return _typical(numbers) >= SMALLEST_TIME


def is_empty(column: pl.Series) -> pl.Series:
    """(n,) Boolean, values that are null or the empty text."""
    return column.is_null() | (column == "") if column.dtype == pl.String else column.is_null()


def numbers_of(column: pl.Series) -> pl.Series:
    """The values as Float64, null where they are no finite numbers."""
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def parse_times(
    column: pl.Series, kind: TimeKind, unit: Unit | None, latest_us: int, *, is_unit_told: bool = False
) -> Times:
    """The column as microseconds.

    Args:
        column: texts, numbers, or typed times.
        kind: what the values are; a typed column is taken by its type.
        unit: what numbers count.
        latest_us: later times are not credible.
        is_unit_told: numbers of another unit's magnitude are taken as they are, too.
    """
    if column.dtype.is_temporal():
        frame = _typed(column)
    elif kind == "iso":
        frame = _finish(_iso(column.cast(pl.String)), is_empty(column), NO_ISO_TIME)
    else:
        assert unit is not None
        quick = _quick(column, unit, latest_us)
        if quick is not None:
            return Times(quick, None, None)
        frame = _numbers(column, unit, is_unit_told=is_unit_told)
    is_far = (pl.col("us") > latest_us) & pl.col("problem").is_null()
    frame = frame.with_columns(
        us=pl.when(pl.col("problem").is_null() & ~is_far).then("us"), is_clamped=is_far.fill_null(value=False)
    )
    is_fine, any_far = frame["problem"].null_count() == frame.height, bool(frame["is_clamped"].any())
    return Times(frame["us"], None if is_fine else frame["problem"], frame["is_clamped"] if any_far else None)


def iso_to_us(text: str) -> int:
    """Microseconds UTC of one ISO time; without an offset it is UTC.

    Raises:
        ValueError: the text is no ISO time.
    """
    moment = datetime.datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (aware - epoch) // datetime.timedelta(microseconds=1)


def _quick(column: pl.Series, unit: Unit, latest_us: int) -> pl.Series | None:
    """The times of whole numbers that all lie within the unit's magnitude and before the latest; None otherwise."""
    whole = column.cast(pl.Int64, strict=False) if column.dtype == pl.String or column.dtype.is_integer() else None
    if whole is None or whole.null_count() or whole.is_empty():
        return None
    first, last, per = whole.min(), whole.max(), PER_SECOND[unit]
    assert isinstance(first, int)
    assert isinstance(last, int)
    low, high = UNIT_BOUNDS[unit]
    if first < low or last >= high or last * 10**6 // per > latest_us:
        return None
    return whole if per == 10**6 else whole * (10**6 // per) if per < 10**6 else whole // (per // 10**6)


def _numbers(column: pl.Series, unit: Unit, *, is_unit_told: bool) -> pl.DataFrame:
    numbers = numbers_of(column)
    frame = _scaled(column, numbers, unit)
    if not is_unit_told:
        low, high = UNIT_BOUNDS[unit]
        is_other = (numbers >= SMALLEST_TIME) & ((numbers < low) | (numbers >= high))
        problem = pl.when(pl.lit(is_other)).then(pl.lit(f"timestamp is in another unit than the source's ({unit})"))
        frame = frame.with_columns(problem=problem)
    return _finish(frame, is_empty(column), "timestamp is no time")


def detect_unit(numbers: pl.Series) -> Unit:
    """The unit whose range holds the median of what is not negative."""
    value = _typical(numbers)
    return next((unit for unit, (_, high) in UNIT_BOUNDS.items() if value < high), "ns")


def _typical(numbers: pl.Series) -> float:
    median = numbers.filter(numbers >= 0).median()
    return median if isinstance(median, float) else 0.0


def _is_text(column: pl.Series, numbers: pl.Series) -> bool:
    """Whether more of the values are other texts than are numbers."""
    num_filled = len(column) - int(is_empty(column).sum())
    return column.dtype == pl.String and num_filled - numbers.count() > numbers.count()


def _typed(column: pl.Series) -> pl.DataFrame:
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is not None:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if column.dtype not in (pl.Datetime, pl.Date):
        us = pl.Series("us", [None] * len(column), pl.Int64)
    else:
        us = column.cast(pl.Datetime("us")).cast(pl.Int64).rename("us")
    frame = us.to_frame().with_columns(problem=pl.lit(None, pl.String))
    return _finish(frame, column.is_null(), "timestamp is no time")


def _scaled(column: pl.Series, numbers: pl.Series, unit: Unit) -> pl.DataFrame:
    """Whole numbers exactly, others by their fraction."""
    per = PER_SECOND[unit]
    whole = (
        column.cast(pl.Int64, strict=False)
        if not column.dtype.is_float()
        else pl.Series([None] * len(column), dtype=pl.Int64)
    )
    limit = YEAR_10000_US * per // 10**6
    fits = pl.when(pl.col("whole").abs() <= limit).then("whole")
    exact = fits * (10**6 // per) if per <= 10**6 else fits // (per // 10**6)
    rounded = (pl.col("number") * (10**6 / per)).round()
    near = pl.when(rounded.abs() <= YEAR_10000_US).then(rounded).cast(pl.Int64)
    frame = pl.DataFrame({"whole": whole, "number": numbers})
    is_beyond = pl.col("number").is_not_null() & (pl.col("number").abs() > limit)
    return frame.select(
        us=pl.when(pl.col("whole").is_not_null()).then(exact).otherwise(near),
        problem=pl.when(is_beyond).then(pl.lit("timestamp is beyond the year 9999")),
    )


def _iso(column: pl.Series) -> pl.DataFrame:
    """The general way is exact and slow; a column of whole seconds without offset has a quicker one."""
    if column.null_count() == 0 and column.str.contains(ISO_SECONDS).all():
        us = column.str.replace("T", " ", literal=True).str.to_datetime(
            "%Y-%m-%d %H:%M:%S", time_unit="us", strict=False
        )
        if us.null_count() == 0:
            return us.cast(pl.Int64).to_frame("us").with_columns(problem=pl.lit(None, pl.String))
    groups = column.to_frame("text").select(
        pl.col("text").str.extract_groups(ISO).struct.rename_fields(list("ymdHMSfz"))
    )
    parts = groups.unnest("text")
    number = {name: pl.col(name).cast(pl.Int64, strict=False).fill_null(0) for name in "HMS"}
    days = pl.concat_str(["y", "m", "d"], separator="-").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    fraction = pl.col("f").str.pad_end(9, "0").cast(pl.Int64, strict=False).fill_null(0) // 1000
    digits = pl.col("z").str.replace_all(r"[^0-9]", "").str.pad_end(4, "0").cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.when(pl.col("z").str.starts_with("-")).then(-1).otherwise(1)
    offset_s = sign * ((digits // 100) * 3600 + (digits % 100) * 60)
    seconds = days * 86_400 + number["H"] * 3600 + number["M"] * 60 + number["S"] - offset_s
    is_clock = (number["H"] < 24) & (number["M"] < 60) & (number["S"] < 60) & (digits <= 2359) & (digits % 100 < 60)
    return parts.select(us=pl.when(is_clock).then(seconds * 10**6 + fraction), problem=pl.lit(None, pl.String))


def _finish(frame: pl.DataFrame, empty: pl.Series, unparsable: str) -> pl.DataFrame:
    problem = (
        pl.when(pl.lit(empty))
        .then(pl.lit("timestamp is empty"))
        .when(pl.col("problem").is_not_null())
        .then("problem")
        .when(pl.col("us").is_null())
        .then(pl.lit(unparsable))
        .when(pl.col("us") < 0)
        .then(pl.lit("timestamp is negative"))
    )
    return frame.select("us", problem=problem)

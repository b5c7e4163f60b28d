"""Times of a log as int64 microseconds UTC.

Numbers have one unit for the whole source, told by magnitude; texts are ISO, with and without offset.
"""

import dataclasses
import datetime
from typing import Literal

import polars as pl

from recsys.errors import DataError

Unit = Literal["s", "ms", "us", "ns"]

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


@dataclasses.dataclass(frozen=True)
class Times:
    """A column of times.

    Attributes:
        us: (n,) Int64, microseconds UTC; null where `problem` is not.
        problem: (n,) String, why a value is no time, or null.
        is_clamped: (n,) Boolean, set back to the latest credible time of the source.
        unit: what the numbers counted, `iso` for texts, `type` for typed columns.
    """

    us: pl.Series
    problem: pl.Series
    is_clamped: pl.Series
    unit: str


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


def parse_times(column: pl.Series, unit: Unit | Literal["auto"], latest_us: int, where: str) -> Times:
    """The column as microseconds.

    Args:
        column: texts, numbers, or typed times.
        unit: what numbers count; `auto` by the magnitude of their median, the same for every row.
        latest_us: later times are set back to the latest one that is not later.
        where: the source's name, for messages.

    Raises:
        DataError: every time is later than `latest_us`.
    """
    frame, told = _to_us(column, unit)
    is_far = pl.col("us") > latest_us
    credible = frame.filter(pl.col("problem").is_null() & ~is_far)["us"].max()
    num_far = frame.filter(is_far & pl.col("problem").is_null()).height
    if num_far and credible is None:
        raise DataError(
            f"{where}: every time lies in the future; check the clock, or set read.time_unit and read.latest_time"
        )
    frame = frame.with_columns(
        us=pl.when(pl.col("problem").is_not_null()).then(None).when(is_far).then(credible).otherwise("us"),
        is_clamped=(is_far & pl.col("problem").is_null()).fill_null(value=False),
    )
    return Times(frame["us"], frame["problem"], frame["is_clamped"], told)


def iso_to_us(text: str) -> int:
    """Microseconds UTC of one ISO time; without an offset it is UTC.

    Raises:
        ValueError: the text is no ISO time.
    """
    moment = datetime.datetime.fromisoformat(text)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (aware - epoch) // datetime.timedelta(microseconds=1)


def _to_us(column: pl.Series, unit: Unit | Literal["auto"]) -> tuple[pl.DataFrame, str]:
    if column.dtype.is_temporal():
        return _typed(column), "type"
    empty, numbers = is_empty(column), numbers_of(column)
    if _is_text(column, numbers):
        return _finish(_iso(column), empty, NO_ISO_TIME), "iso"
    told = detect_unit(numbers) if unit == "auto" else unit
    frame = _scaled(column, numbers, told)
    if unit == "auto":
        low, high = UNIT_BOUNDS[told]
        is_other = (numbers >= SMALLEST_TIME) & ((numbers < low) | (numbers >= high))
        problem = pl.when(pl.lit(is_other)).then(pl.lit(f"timestamp is in another unit than the source's ({told})"))
        frame = frame.with_columns(problem=problem)
    return _finish(frame, empty, "timestamp is no time"), told


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

import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.formats.times import (
    Times,
    Unit,
    detect_unit,
    iso_to_us,
    looks_like_times,
    numbers_of,
    parse_times,
    time_kind,
)

LATEST = iso_to_us("2026-01-01")
PER: dict[Unit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def _parse(column: pl.Series) -> Times:
    """As a source of this one column is read."""
    kind = time_kind(column) or "number"
    return parse_times(column, kind, detect_unit(numbers_of(column)) if kind == "number" else None, LATEST)


def _problems(times: Times) -> list[str | None]:
    return [None] * len(times.us) if times.problem is None else times.problem.to_list()


def _us(values: list[str | None]) -> list[int | None]:
    return _parse(pl.Series(values, dtype=pl.String)).us.to_list()


@settings(max_examples=60, deadline=None)
@given(seconds=st.lists(st.integers(10**8, 1_700_000_000), min_size=1, max_size=20), as_text=st.booleans())
@pytest.mark.parametrize("unit", list(PER))
def test_numbers_of_any_unit_become_microseconds(unit: Unit, seconds: list[int], as_text: bool) -> None:
    values = [second * PER[unit] for second in seconds]
    column = pl.Series([str(v) for v in values]) if as_text else pl.Series(values, dtype=pl.Int64)
    times = _parse(column)
    assert detect_unit(numbers_of(column)) == unit
    assert times.us.to_list() == [second * 10**6 for second in seconds]
    assert times.is_clamped is None


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2015-03-01", "2015-03-01T00:00:00+00:00"),
        ("2015-03-01 10:20", "2015-03-01T10:20:00+00:00"),
        ("2015-03-01T10:20:30Z", "2015-03-01T10:20:30+00:00"),
        ("2015-03-01T10:20:30.5+02:00", "2015-03-01T08:20:30.500000+00:00"),
        ("2015-03-01 10:20:30.123456789 -0330", "2015-03-01T13:50:30.123456+00:00"),
        ("2015-03-01 10:20:30+02", "2015-03-01T08:20:30+00:00"),
    ],
)
def test_iso_times_are_utc_unless_they_say_otherwise(text: str, iso: str) -> None:
    assert _us([text]) == [iso_to_us(iso)]


@settings(max_examples=60, deadline=None)
@given(
    moment=st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2025, 12, 30)),
    hours=st.integers(-14, 14),
)
def test_iso_times_agree_with_the_standard_library(moment: datetime.datetime, hours: int) -> None:
    aware = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=hours)))
    assert _us([aware.isoformat()]) == [iso_to_us(aware.isoformat())]


@pytest.mark.parametrize(
    "text",
    [
        "2015-02-30",
        "2015-13-01",
        "2015-01-01 24:00",
        "2015-01-01 10:60",
        "yesterday",
        "01/02/2015",
        "31/12/2020 10:00",
        "2015-1-1",
    ],
)
def test_what_is_no_iso_time_says_so(text: str) -> None:
    times = _parse(pl.Series(["2015-01-01", text, "2015-01-02"]))
    assert _problems(times) == [None, "timestamp is no ISO time, wanted 2020-12-31T10:00", None]


def test_each_bad_number_has_its_reason() -> None:
    values = [
        "1500000000",
        "1500000001.25",
        "",
        None,
        "-5",
        "x",
        "nan",
        "1500000000000",
        "99999999999999999999",
        "1.5e9",
    ]
    times = _parse(pl.Series(values))
    other = "timestamp is in another unit than the source's (s)"
    empty, no_time = "timestamp is empty", "timestamp is no time"
    assert _problems(times) == [
        None, None, empty, empty, "timestamp is negative", no_time, no_time, other, other, None,
    ]  # fmt: skip
    assert times.us.drop_nulls().to_list() == [1500000000000000, 1500000001250000, 1500000000000000]


def test_a_told_unit_is_not_doubted_but_ends_with_the_year_9999() -> None:
    column = pl.Series([5, 10**11, 253_402_300_801])
    times = parse_times(column, "number", "s", 10**18, is_unit_told=True)
    assert times.us.to_list() == [5_000_000, 10**17, None]
    assert _problems(times) == [None, None, "timestamp is beyond the year 9999"]


def test_future_times_are_marked_and_left_out() -> None:
    times = _parse(pl.Series(["1500000000", "4000000000", "1600000000"]))
    assert times.us.to_list() == [1500000000000000, None, 1600000000000000]
    assert times.is_clamped is not None
    assert times.is_clamped.to_list() == [False, True, False]
    assert _problems(times) == [None, None, None]
    assert _parse(pl.Series([LATEST // 10**6])).is_clamped is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.datetimes(datetime.datetime(1600, 1, 1), datetime.datetime(9998, 1, 1)).map(lambda t: t.isoformat()[:19])
        | st.from_regex(r"\A20[0-9]{2}-[0-1][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]\Z"),
        min_size=1,
        max_size=8,
    )
)
def test_the_quick_way_of_whole_seconds_means_what_the_general_one_says(texts: list[str]) -> None:
    quick = _us([*texts])
    general = _us([*texts, "2015-03-01T10:20:30.5+02:00"])  # an offset: no column for the quick way
    assert quick == general[:-1]


def test_typed_times_keep_their_moment() -> None:
    naive = pl.Series([datetime.datetime(2015, 3, 1, 10), None])
    zoned = naive.dt.replace_time_zone("Europe/Berlin")
    for column, iso in ((naive, "2015-03-01T10:00:00"), (zoned, "2015-03-01T09:00:00")):
        times = _parse(column)
        assert times.us.to_list() == [iso_to_us(iso), None]
        assert _problems(times) == [None, "timestamp is empty"]
    dates = pl.Series([datetime.date(2015, 3, 1)])
    assert _parse(dates).us.to_list() == [iso_to_us("2015-03-01")]


@pytest.mark.parametrize(
    ("values", "are_times"),
    [
        (["0", "1", "2313"], False),
        (["100000000", "5"], False),
        (["1500000000"], True),
        (["-1500000000"] * 3 + ["1500000000"], True),
        (["2015-01-01", "2015-01-02", "1"], True),
    ],
)
def test_small_numbers_are_places_and_not_times(values: list[str], are_times: bool) -> None:
    assert looks_like_times(pl.Series(values)) is are_times


@pytest.mark.parametrize(("unit", "bound"), [("s", 10**11), ("ms", 10**14), ("us", 10**17)])
def test_the_first_number_of_the_next_unit_is_in_another_one(unit: Unit, bound: int) -> None:
    latest = 2**62
    times = parse_times(pl.Series([bound, bound // 2]), "number", unit, latest)
    assert _problems(times) == [f"timestamp is in another unit than the source's ({unit})", None]

"""Two halves of one simulated day are alike; each planted difference is found by its name, and no other one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys import config as configs
from recsys.errors import ConfigError, DataError
from recsys.features.difference.compare import Check, compare_logs
from recsys.features.difference.config import DiffConfig
from recsys.features.difference.profile import profile_log
from recsys.features.schema import ReadConfig

DAY_S = 86_400
BEGIN_S = 1_700_006_400


def quiet(line: str) -> None:
    del line


@pytest.fixture(scope="module")
def halves() -> tuple[pl.DataFrame, pl.DataFrame]:
    """A day of 20,000 events, its users dealt out to two halves."""
    generator = np.random.default_rng(5)
    num_events, num_items = 20_000, 300
    popularity = 1 / np.arange(1, num_items + 1)
    hours = 1 + np.sin(np.arange(24) / 24 * 2 * np.pi)
    hour = generator.choice(24, num_events, p=hours / hours.sum())
    types = generator.choice(["view", "cart", "buy"], num_events, p=[0.8, 0.15, 0.05])
    day = pl.DataFrame(
        {
            "user_id": generator.integers(0, 2_000, num_events),
            "item_id": generator.choice(num_items, num_events, p=popularity / popularity.sum()),
            "timestamp": BEGIN_S + hour * 3_600 + generator.integers(0, 3_600, num_events),
            "event_type": types,
            "weight": np.round(generator.gamma(2.0, 10.0, num_events), 2),
            "price": generator.random(num_events),
        }
    )
    return day.filter(pl.col("user_id") % 2 == 0), day.filter(pl.col("user_id") % 2 == 1)


def compared(folder: Path, old: pl.DataFrame, new: pl.DataFrame, config: DiffConfig | None = None) -> dict[str, Check]:
    old.write_parquet(folder / "old.parquet")
    new.write_parquet(folder / "new.parquet")
    before, after = (profile_log(folder / f"{name}.parquet", ReadConfig(), quiet) for name in ("old", "new"))
    return {check.name: check for check in compare_logs(before, after, config or LIMITS)}


def told(checks: dict[str, Check], verdict: str = "fail") -> set[str]:
    return {name for name, check in checks.items() if check.verdict == verdict}


# The halves share no user, by making.
LIMITS = configs.load(DiffConfig, {"new_users": {"warn_share": 1.0, "max_share": 1.0}})

Change = Callable[[pl.DataFrame], pl.DataFrame]
ROW = pl.int_range(pl.len())
PLANTED: list[tuple[str, Change, set[str]]] = [
    ("a third of the events", lambda day: day.filter(ROW % 3 == 0), {"volume.events"}),
    ("few users", lambda day: day.with_columns(pl.col("user_id") % 400), {"volume.users"}),
    ("few items", lambda day: day.filter(pl.col("item_id") < 100), {"volume.items"}),
    (
        "other items",
        lambda day: day.with_columns(pl.when(ROW % 3 > 0).then(pl.col("item_id") + 150).otherwise("item_id")),
        {"drift.popularity"},
    ),
    (
        "items of a new catalogue",
        lambda day: day.with_columns(pl.col("item_id") + 10_000),
        {"new_items"},
    ),
    (
        "ids as texts",
        lambda day: day.with_columns(pl.format("i{}", "item_id").alias("item_id")),
        {"kind.item_id", "columns.type", "new_items"},
    ),
    ("popularity turned round", lambda day: day.with_columns(item_id=299 - pl.col("item_id")), {"drift.popularity"}),
    (
        "the clock of another continent",
        lambda day: day.with_columns(pl.col("timestamp") + 9 * 3_600),
        {"drift.hours"},
    ),
    (
        "a new type",
        lambda day: day.with_columns(
            pl.when(ROW % 20 == 0).then(pl.lit("share")).otherwise("event_type").alias("event_type")
        ),
        {"event_types.new"},
    ),
    ("a type that is gone", lambda day: day.filter(pl.col("event_type") != "buy"), {"event_types.vanished"}),
    (
        "another mix of types",
        lambda day: day.filter((pl.col("event_type") != "view") | (ROW % 6 == 0)),
        {"drift.type_mix", "volume.events"},
    ),
    ("heavier weights", lambda day: day.with_columns(pl.col("weight") * 2.5), {"drift.weights"}),
    (
        "weights that are missing",
        lambda day: day.with_columns(pl.when(ROW % 10 == 0).then(None).otherwise("weight").alias("weight")),
        {"missing.weight"},
    ),
    (
        "prices that are missing",
        lambda day: day.with_columns(pl.when(ROW % 10 == 0).then(None).otherwise("price").alias("price")),
        {"missing.price"},
    ),
    (
        "users that are missing",
        lambda day: day.with_columns(pl.when(ROW % 25 == 0).then(None).otherwise("user_id").alias("user_id")),
        {"missing.user_id", "rejected"},
    ),
    (
        "clocks that are wrong",
        lambda day: day.with_columns(
            pl.when(ROW % 50 == 0).then(9_999_999_999).otherwise("timestamp").alias("timestamp")
        ),
        {"clamped"},
    ),
    ("a column that is gone", lambda day: day.drop("price"), {"columns.vanished"}),
    ("another type of a column", lambda day: day.with_columns(pl.col("price").cast(pl.Float32)), {"columns.type"}),
    ("no times", lambda day: day.drop("timestamp"), {"kind.order", "columns.vanished"}),
]


def test_two_halves_of_a_day_are_alike(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    checks = compared(tmp_path, *halves)
    assert {check.verdict for check in checks.values()} == {"ok"}
    drifts = {name: check.value for name, check in checks.items() if name.startswith("drift.")}
    assert set(drifts) == {"drift.popularity", "drift.hours", "drift.type_mix", "drift.weights"}
    assert all(value is not None and value < 0.002 for value in drifts.values())


@pytest.mark.parametrize(("change", "names"), [(c, n) for _, c, n in PLANTED], ids=[name for name, _, _ in PLANTED])
def test_a_planted_difference_is_found_by_name_and_no_other(
    change: Change, names: set[str], halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = halves
    assert names <= told(compared(tmp_path, old, change(new)))
    related = {"volume.events": {"volume.users"}, "volume.items": {"drift.popularity"}}
    allowed = names.union(*(related.get(name, set()) for name in names)) | {"new_items"}
    assert told(compared(tmp_path, old, change(new))) <= allowed


def test_a_new_column_and_another_time_unit_are_a_warning(
    halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = halves
    checks = compared(tmp_path, old, new.with_columns(pl.col("timestamp") * 1000, page=pl.lit(1)))
    assert told(checks) == set()
    assert told(checks, "warn") == {"columns.new", "kind.time_unit"}


def test_few_wrong_clocks_warn_and_none_is_credible_fails(
    halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = halves
    for every, verdict in ((5_000, "ok"), (500, "warn"), (1, "fail")):
        late = new.with_columns(pl.when(ROW % every == 0).then(9_999_999_999).otherwise("timestamp").alias("timestamp"))
        checks = compared(tmp_path, old, late)
        assert checks["clamped"].verdict == verdict
    assert checks["clamped"].value == 1
    assert checks["span"].new == "no credible times in the new log"


def test_the_same_log_again_is_a_warning(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    old, new = halves
    checks = compared(tmp_path, old, old)
    assert (told(checks), told(checks, "warn")) == (set(), {"same"})
    assert checks["same"].new == "identical bytes"
    assert compared(tmp_path, old, old.reverse())["same"].new == "same times and counts"
    assert compared(tmp_path, old, new)["same"].verdict == "ok"
    rows = old.drop("timestamp")
    assert compared(tmp_path, rows, rows.reverse())["same"].verdict == "ok"
    assert compared(tmp_path, rows, rows)["same"].verdict == "warn"


def test_a_log_that_ends_earlier_is_a_warning(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    old, new = halves
    for seconds, verdict in ((DAY_S, "ok"), (-600, "ok"), (-DAY_S, "warn")):
        check = compared(tmp_path, old, new.with_columns(pl.col("timestamp") + seconds))["span"]
        assert check.verdict == verdict
    assert check.value == pytest.approx(1, abs=0.01)
    config = configs.load(DiffConfig, {"span": {"warn_share": 1.5}})
    assert compared(tmp_path, old, new.with_columns(pl.col("timestamp") - DAY_S), config)["span"].verdict == "ok"
    with pytest.raises(ConfigError, match=r"span\.warn_share=-1"):
        configs.load(DiffConfig, {"span": {"warn_share": -1}})


def test_exact_times_are_one_kind(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    old, new = (half.with_columns(pl.from_epoch("timestamp").cast(pl.Datetime("us"))) for half in halves)
    old.write_parquet(tmp_path / "old.parquet")
    new.write_csv(tmp_path / "new.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    before, after = (profile_log(tmp_path / name, ReadConfig(), quiet) for name in ("old.parquet", "new.csv"))
    check = next(check for check in compare_logs(before, after, LIMITS) if check.name == "kind.time_unit")
    assert (check.old, check.new, check.verdict) == ("timestamp column", "ISO 8601", "ok")


def test_what_cannot_be_checked_is_skipped_and_says_why(
    halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = halves
    other = new.with_columns(pl.col("item_id") + 10_000)
    check = compared(tmp_path, old, other)["drift.popularity"]
    assert (check.verdict, check.value, check.new) == ("skipped", None, "0 shared items; wanted 2")
    one = other.with_columns(pl.when(ROW == 0).then(old["item_id"][0]).otherwise("item_id").alias("item_id"))
    assert compared(tmp_path, old, one)["drift.popularity"].new == "1 shared item; wanted 2"
    checks = compared(tmp_path, old.drop("weight"), new.drop("event_type", "timestamp"))
    why = {name: check.new for name, check in checks.items() if check.verdict == "skipped"}
    types = "no event types in the new log"
    assert why == {
        "event_types.new": types,
        "event_types.vanished": types,
        "clamped": "no times in the new log",
        "span": "no times in the new log",
        "drift.hours": "no times in the new log",
        "drift.type_mix": types,
        "drift.weights": "no weights in the old log",
    }
    assert compared(tmp_path, old.drop("weight"), new.drop("weight"))["drift.weights"].new == "no weights in either log"


def test_all_users_new_fails_by_default(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    assert told(compared(tmp_path, *halves, DiffConfig())) == {"new_users"}


def test_a_threshold_is_the_largest_value_that_passes(
    halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, _ = halves
    new = old.head(old.height // 4 * 2)
    for limit, verdict in ((old.height / new.height, "warn"), (old.height / new.height - 0.001, "fail")):
        config = configs.load(DiffConfig, {"volume": {"warn_ratio": 1.1, "max_ratio": limit}})
        assert compared(tmp_path, old, new, config)["volume.events"].verdict == verdict


def test_text_has_no_column_types_and_is_compared_all_the_same(
    halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = halves
    old.write_csv(tmp_path / "old.csv")
    new.write_parquet(tmp_path / "new.parquet")
    before, after = (profile_log(tmp_path / name, ReadConfig(), quiet) for name in ("old.csv", "new.parquet"))
    checks = {check.name: check for check in compare_logs(before, after, LIMITS)}
    assert told(checks) == set()


WRITERS: dict[str, Callable[[pl.DataFrame, Path], None]] = {
    "csv": lambda day, path: day.write_csv(path),
    "quoted.csv": lambda day, path: day.write_csv(path, quote_style="always"),
    "jsonl": lambda day, path: day.write_ndjson(path),
    "texts.parquet": lambda day, path: day.with_columns(pl.col(pl.String).fill_null("")).write_parquet(path),
    "parquet": lambda day, path: day.write_parquet(path),
}


@pytest.mark.parametrize("format_", WRITERS)
def test_a_value_is_missing_whatever_the_format(
    format_: str, halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path
) -> None:
    old, new = (half.with_columns(page=pl.lit("a")) for half in halves)
    names = ["event_type", "weight", "price", "page", "timestamp"]
    holes = [pl.when(n != ROW % 20).then(name).alias(name) for n, name in enumerate(names)]
    WRITERS[format_](old, tmp_path / f"old.{format_}")
    WRITERS[format_](new.with_columns(holes), tmp_path / f"new.{format_}")
    before, after = (profile_log(tmp_path / f"{name}.{format_}", ReadConfig(), quiet) for name in ("old", "new"))
    assert after.types["event_type"].sort().to_list() == ["buy", "cart", "view"]
    assert set(before.missing.values()) == {0.0}
    assert before.missing.keys() == after.missing.keys() == set(old.columns)
    checks = {check.name: check for check in compare_logs(before, after, LIMITS)}
    assert told(checks) == {"rejected", *(f"missing.{name}" for name in names)}
    found = {checks[f"missing.{name}"].value for name in names}
    assert all(value is not None and abs(value - 0.05) < 0.001 for value in found)


def test_a_key_that_a_json_object_lacks_is_missing(halves: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path) -> None:
    old, new = halves
    old.write_ndjson(tmp_path / "old.jsonl")
    new.write_ndjson(tmp_path / "new.jsonl")
    lines = (
        (tmp_path / "new.jsonl").read_text().replace('"user_id":', '"user":', 500).replace('"price":', '"cost":', 700)
    )
    (tmp_path / "new.jsonl").write_text("\n".join(reversed(lines.splitlines())) + "\n")
    before, after = (profile_log(tmp_path / f"{name}.jsonl", ReadConfig(), quiet) for name in ("old", "new"))
    assert after.missing["user_id"] == pytest.approx(500 / new.height)
    # A line that lacks what it needs has no row, and nothing else is counted of it.
    assert after.missing["price"] == pytest.approx(200 / new.height)
    checks = {check.name: check for check in compare_logs(before, after, LIMITS)}
    assert {"missing.user_id", "rejected"} <= told(checks)


def test_a_log_without_a_usable_event_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\n,1\n")
    with pytest.raises(DataError, match="no usable event"):
        profile_log(tmp_path / "log.csv", ReadConfig(), quiet)


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"volume.*warn <= max; set both"):
        configs.load(DiffConfig, {"volume": {"max_ratio": 1.2}})

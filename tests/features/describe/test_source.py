"""A log's figures against plain definitions in Python, whatever the size of the chunks."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.describe import spool
from recsys.features.describe.advice import advice
from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.source import describe_source

ROWS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1_500_000_000, 1_500_000_009),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=40,
)


def quiet(line: str) -> None:
    del line


def described(path: Path, **config: Any) -> dict[str, Any]:
    return describe_source(path, DescribeConfig(**config), quiet)


def by_definition(rows: list[tuple[int, str, int, int]]) -> dict[str, Any]:
    users: dict[int, list[tuple[int, str, int, int]]] = {}
    for row in rows:
        users.setdefault(row[0], []).append(row)
    ordered = {user: sorted(events, key=lambda row: row[2]) for user, events in users.items()}
    pairs = [(one, two) for events in ordered.values() for one, two in zip(events, events[1:], strict=False)]
    times = {user: Counter(row[2] for row in events) for user, events in users.items()}
    return {
        "repeats": len(rows) - len({row[:2] for row in rows}),
        "consecutive": sum(one[1] == two[1] for one, two in pairs),
        "ties": sum(count for counts in times.values() for count in counts.values() if count > 1),
        "duplicates": len(rows) - len(set(rows)),
        "out_of_order": sum(events != ordered[user] for user, events in users.items()),
        "rows_back": sum(two[2] < one[2] for one, two in zip(rows, rows[1:], strict=False)),
        "blocks": sum(one[0] != two[0] for one, two in zip(rows, rows[1:], strict=False)) + 1 == len(users),
        "lengths": sorted(len(events) for events in users.values()),
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, chunk=st.sampled_from([1, 3, 1000]), parts=st.sampled_from([1, 3]))
def test_every_count_is_that_of_its_definition(
    rows: list[tuple[int, str, int, int]], chunk: int, parts: int, tmp_path: Path
) -> None:
    lines = "".join(f"{u},{i},{t},type{k}\n" for u, i, t, k in rows)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,event_type\n" + lines)
    with pytest.MonkeyPatch.context() as patch:
        if parts > 1:
            # The estimate of a text file's rows is rough: any number of rows goes into files.
            patch.setattr(spool, "ROWS_IN_MEMORY", 0)
            patch.setattr(spool, "ROWS_PER_PART", 1)
        found = described(tmp_path / "log.csv", rows_per_chunk=chunk)
    wanted = by_definition(rows)
    assert found["repeats"]["events"] == wanted["repeats"]
    assert found["repeats"]["consecutive"] == wanted["consecutive"]
    assert found["ties"]["events"] == wanted["ties"]
    assert found["duplicates"]["events"] == wanted["duplicates"]
    assert found["order_problems"] == {
        "rows_out_of_time_order": wanted["rows_back"],
        "users_out_of_order": wanted["out_of_order"],
        "users_in_blocks": wanted["blocks"],
    }
    assert (found["counts"]["events"], found["counts"]["users"]) == (len(rows), len(wanted["lengths"]))
    assert found["counts"]["items"] == len({row[1] for row in rows})
    assert found["lengths"]["max"] == wanted["lengths"][-1]
    assert sum(found["time"]["events_by_hour"]) == len(rows)
    assert found["event_types"] == {
        f"type{k}": n for k, n in sorted(Counter(row[3] for row in rows).items(), key=lambda one: (-one[1], one[0]))
    }
    json.dumps(found, allow_nan=False)
    is_long = found["lengths"]["max"] >= 3
    assert advice(found)[-1].startswith("next: recsys prepare " if is_long else "no user has 3 events")


def test_files_of_a_spool_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "ROWS_IN_MEMORY", 0)
    monkeypatch.setattr(spool, "ROWS_PER_PART", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    (tmp_path / "log.txt").write_text("1 2 3\n2 3 4\n")
    assert described(tmp_path / "log.txt")["counts"]["events"] == 4
    assert list((tmp_path / "room").iterdir()) == []


def test_rejected_lines_and_future_times_are_counted(tmp_path: Path) -> None:
    lines = ["user,item,ts", "1,2,1500000000", "1,3,1500000001", ",3,1500000001", "1,4,99999999999", "1,5,soon"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    found = described(tmp_path / "log.csv")
    assert (found["counts"]["lines"], found["counts"]["good"], found["counts"]["rejected"]) == (5, 3, 2)
    assert found["counts"]["rejected_by_reason"] == {"timestamp is no time": 1, "user_id is empty": 1}
    assert found["counts"]["clamped"] == 1
    # The clamped event takes the latest credible time, and so ties with it.
    assert found["ties"]["events"] == 2
    told = " ".join(advice(found))
    assert "2 lines are rejected (40.0%)" in told
    assert "lie in the future" in told


def test_without_times_nothing_is_said_of_time_and_ties(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 5 5 6\n2 6\n")
    found = described(tmp_path / "log.txt")
    assert found["time"] is None
    assert found["ties"] == {"events": None, "share": None, "users": None, "with_previous_share": None}
    assert found["duplicates"] == {"events": None, "share": None}
    assert found["repeats"]["consecutive"] == 1
    assert "--protocol loo" in advice(found)[-1]


def test_suspected_bots_are_named(tmp_path: Path) -> None:
    rows = [f"bot,{n},{1_500_000_000 + n}" for n in range(30)] + [f"u{n},1,1500000000" for n in range(9)]
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "\n".join(rows) + "\n")
    found = described(tmp_path / "log.csv", bot_events=20)
    assert (found["bots"]["users"], found["bots"]["events"]) == (1, 30)
    assert found["bots"]["longest"][0] == {"user": "bot", "events": 30}
    assert any("bots?" in line for line in advice(found))
    assert described(tmp_path / "log.csv")["bots"]["users"] == 0


def test_policies_are_advised_where_they_matter(tmp_path: Path) -> None:
    rows = [f"{u},{n // 2},{1_500_000_000 + n // 4},view" for u in range(4) for n in range(20)]
    rows += ["0,1,1500000000,view", "0,1,1500000000,buy"]
    (tmp_path / "log.csv").write_text("user,item,ts,event\n" + "\n".join(rows) + "\n")
    told = " ".join(advice(described(tmp_path / "log.csv")))
    for setting in ("events.duplicates=drop", "events.repeats=collapse", "events.types", "events.ties", "--seen keep"):
        assert setting in told


def test_a_log_whose_times_all_lie_in_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n1,2,9999999999\n")
    with pytest.raises(DataError, match="every time lies in the future"):
        described(tmp_path / "log.csv")


def test_an_empty_type_is_missing_whatever_the_format(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp,event_type\n1,2,1500000000,\n1,3,1500000001,view\n2,3,1500000002,view\n"
    (tmp_path / "log.csv").write_text(text)
    pl.read_csv(tmp_path / "log.csv").write_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        found = described(tmp_path / name)
        assert found["missing"] == {"event_type": 1}
        assert found["event_types"] == {"view": 2, "(none)": 1}

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.errors import DataError, InputError
from recsys.features.journal.journal import Event, Journal, event_id_of, now_us
from recsys.features.schema import ReadConfig
from recsys.pipelines import ingest as module
from recsys.pipelines.ingest import ingest

HEADER = "user_id,item_id,timestamp,event_type\n"
ROWS = "7,i1,1700000000,view\n7,i2,1700000100,\n8,i1,1700000050,buy\n7,i1,1700000000,view\n"


def write(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_line_is_in_the_journal_with_its_ids_time_and_type(tmp_path: Path) -> None:
    counts = ingest(write(tmp_path, HEADER + ROWS), tmp_path / "journal")
    assert counts.pop("seconds") > 0
    assert counts == {
        "lines": 4,
        "rejected": 0,
        "events": 4,
        "accepted": 4,
        "duplicates": 0,
        "refused": 0,
        "clamped": 0,
    }
    with Journal(tmp_path / "journal", read_only=True) as journal:
        assert journal.users() == [7, 8]
        past = journal.history(7)
        assert past.item_ids == ["i1", "i1", "i2"]
        assert past.times == [1_700_000_000_000_000, 1_700_000_000_000_000, 1_700_000_100_000_000]
        assert [event.event_type for event in journal.read()] == ["view", "click", "buy", "view"]


def test_a_second_ingest_of_the_same_file_accepts_nothing(tmp_path: Path) -> None:
    source = write(tmp_path, HEADER + ROWS)
    ingest(source, tmp_path / "journal")
    again = ingest(source, tmp_path / "journal")
    assert (again["accepted"], again["duplicates"]) == (0, 4)
    write(tmp_path, HEADER + ROWS + "9,i3,1700000200,view\n7,i1,1700000000,view\n")
    grown = ingest(source, tmp_path / "journal")
    assert (grown["accepted"], grown["duplicates"]) == (2, 4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)), min_size=1, max_size=30),
    commit=st.integers(1, 7),
)
def test_however_it_is_cut_into_commits_every_line_is_stored_once(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[int, int, int]],
    commit: int,
) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_COMMIT", commit)
    folder = tmp_path_factory.mktemp("ingest")
    text = "".join(f"{user},{item},{1_700_000_000 + at},\n" for user, item, at in rows)
    source = write(folder, HEADER + text)
    assert ingest(source, folder / "journal")["accepted"] == len(rows)
    assert ingest(source, folder / "journal")["duplicates"] == len(rows)
    with Journal(folder / "journal", read_only=True) as journal:
        for user in (1, 2, 3):
            own = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
            assert journal.history(user).item_ids == [item for _, item, _ in own]


def test_an_interrupted_ingest_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_COMMIT", 10)
    lines = [f"{n % 3},{n},{1_700_000_000 + n},\n" for n in range(50)]
    ingest(write(tmp_path, HEADER + "".join(lines[:20]), "part.csv"), tmp_path / "journal")
    counts = ingest(write(tmp_path, HEADER + "".join(lines)), tmp_path / "journal")
    assert (counts["accepted"], counts["duplicates"]) == (30, 20)


@pytest.mark.parametrize(
    "text", ["1 10 11 12\n2 20 10\n", "user_id,item_id,position\n1,12,3\n1,10,1\n1,11,2\n2,20,1\n2,10,2\n"]
)
def test_a_source_without_times_keeps_its_order(tmp_path: Path, text: str) -> None:
    source = write(tmp_path, text, "log.txt" if text.startswith("1") else "log.csv")
    assert ingest(source, tmp_path / "journal")["accepted"] == 5
    assert ingest(source, tmp_path / "journal")["accepted"] == 0
    with Journal(tmp_path / "journal", read_only=True) as journal:
        assert journal.history(1).item_ids == [10, 11, 12]
        assert journal.history(2).item_ids == [20, 10]
        assert journal.history(1).times is None


def test_bad_rows_are_set_aside_with_their_lines(tmp_path: Path) -> None:
    good = "".join(f"{n},{n},{1_700_000_000 + n},\n" for n in range(60))
    source = write(tmp_path, HEADER + good + ",5,1700000000,\n" + f"61,{'x' * 2000},1700000000,\n" + "62,6,soon,\n")
    said: list[str] = []
    counts = ingest(source, tmp_path / "journal", ReadConfig(item_ids="str"), say=said.append)
    assert (counts["lines"], counts["rejected"], counts["refused"], counts["accepted"]) == (63, 2, 1, 60)
    (kept,) = (tmp_path / "journal").glob("rejected-*.parquet")
    rejected = pl.read_parquet(kept)
    assert dict(zip(rejected["line"], rejected["reason"], strict=True)) == {
        62: "user_id is empty",
        64: "timestamp is no time",
        63: "item_id: 2000 characters long, wanted 1 to 1024",
    }
    assert set(rejected["file"]) == {"log.csv"}
    assert any(str(kept) in line for line in said)


def test_an_event_whose_id_is_taken_by_another_is_set_aside_with_its_line(tmp_path: Path) -> None:
    taken = event_id_of(7, "i2", "t1700000100000000", "click", 0)
    with Journal(tmp_path / "journal") as journal:
        journal.append([Event(user_id="other", item_id="i9", event_id=taken)])
    counts = ingest(write(tmp_path, HEADER + ROWS), tmp_path / "journal")
    assert (counts["accepted"], counts["duplicates"], counts["refused"]) == (3, 0, 1)
    (kept,) = (tmp_path / "journal").glob("rejected-*.parquet")
    ((file, line, reason, _),) = pl.read_parquet(kept).rows()
    assert (file, line) == ("log.csv", 3)
    assert "already used for another event" in reason


def test_a_source_that_is_mostly_bad_stores_nothing(tmp_path: Path) -> None:
    source = write(tmp_path, HEADER + ROWS + ",5,1700000000,\n")
    with pytest.raises(DataError, match="1 of 5 lines rejected"):
        ingest(source, tmp_path / "journal")
    with Journal(tmp_path / "journal") as journal:
        assert journal.read() == []
    assert len(list((tmp_path / "journal").glob("rejected-*.parquet"))) == 1


def test_a_missing_or_torn_source_makes_no_journal(tmp_path: Path) -> None:
    torn = tmp_path / "log.csv.gz"
    torn.write_bytes(gzip.compress((HEADER + ROWS * 50).encode())[:-20])
    for source in (tmp_path / "none.csv", torn):
        with pytest.raises(DataError):
            ingest(source, tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_a_journal_that_is_being_written_is_refused_with_the_remedy(tmp_path: Path) -> None:
    source = write(tmp_path, HEADER + ROWS)
    with Journal(tmp_path / "journal"), pytest.raises(InputError, match="written by process .* /v1/feedback"):
        ingest(source, tmp_path / "journal")


def test_times_in_the_future_are_clamped_by_the_journal_and_still_known_the_next_time(tmp_path: Path) -> None:
    future_us = now_us() + 400 * 86_400_000_000
    source = write(tmp_path, HEADER + f"7,i1,{future_us},\n7,i2,{now_us() - 5},\n")
    counts = ingest(source, tmp_path / "journal")
    assert (counts["accepted"], counts["clamped"]) == (2, 1)
    assert ingest(source, tmp_path / "journal")["duplicates"] == 2
    with Journal(tmp_path / "journal", read_only=True) as journal:
        event = journal.read()[0]
        assert event.claimed_us == future_us
        assert event.time_us == event.received_us


def test_progress_is_said_in_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_COMMIT", 2)
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    said: list[str] = []
    ingest(write(tmp_path, HEADER + ROWS), tmp_path / "journal", say=said.append)
    assert any("2 of 4 events" in line and "a second" in line for line in said)
    assert any("4 of 4 events" in line for line in said)
    assert "4 accepted, 0 duplicates" in said[-1]

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError, StorageError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import find_leaks
from recsys.features.preparation.append import append
from recsys.features.preparation.policies import EventConfig
from recsys.features.prepare import FilterConfig, PrepareConfig, ReadConfig, SplitConfig, prepare
from tests.full_disk import most_bytes_of_a_file

START = 1_500_000_000
EVENT = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 40), st.sampled_from("vb"))
Event = tuple[int, int, int, str]


def _write(path: Path, events: list[Event], key: str | None = "ts", prefix: str = "") -> Path:
    base = START if key == "ts" else 0
    header = ",".join(["user", "item", "event", *([key] if key else [])])
    rows = [f"{prefix}{u},{prefix}{i},{kind}" + (f",{base + t}" if key else "") for u, i, t, kind in events]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def _sequences(dataset: PreparedDataset) -> dict[Any, tuple[Any, ...]]:
    """Raw user id -> raw item ids, times, event types, and the two cuts."""
    found = {}
    for shard in dataset.shards:
        for row, user in enumerate(dataset.users.decode(shard.users)):
            part = slice(shard.offsets[row], shard.offsets[row + 1])
            times = None if shard.times is None else shard.times[part].tolist()
            cuts = (int(shard.train_end[row]), int(shard.valid_end[row]))
            assert shard.event_types is not None
            types = [dataset.event_type_names[number - 1] for number in shard.event_types[part].tolist()]
            found[user] = (dataset.items.decode(shard.items[part]), times, types, cuts)
    return found


def _check_whole(dataset: PreparedDataset) -> None:
    """The arrays fit the manifest, and no work is left beside them."""
    dataset.verify()
    assert dataset.num_users == len(dataset.users) == sum(len(shard.users) for shard in dataset.shards)
    assert dataset.num_items == len(dataset.items)
    assert dataset.num_events == sum(len(shard.items) for shard in dataset.shards)
    assert not [path for path in dataset.path.parent.iterdir() if path.name.startswith(".")]


@settings(max_examples=30, deadline=None)
@given(
    days=st.lists(st.lists(EVENT, min_size=1, max_size=20), min_size=2, max_size=3, unique_by=str),
    key=st.sampled_from(["ts", "position", None]),
    prefix=st.sampled_from(["", "x"]),
    shards=st.sampled_from([1, 3]),
    ties=st.sampled_from(["file", "item", "shuffle"]),
    duplicates=st.sampled_from(["keep", "drop"]),
    repeats=st.sampled_from(["keep", "first", "last"]),
)
def test_appended_days_equal_a_dataset_made_of_all_days_at_once(
    days: list[list[Event]],
    key: str | None,
    prefix: str,
    shards: int,
    ties: Any,
    duplicates: Any,
    repeats: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("append")
    policies = EventConfig(ties=ties, duplicates=duplicates) if key else EventConfig()
    policies = dataclasses.replace(policies, repeats=repeats)
    # The anchors' three moments leave no part of a split by time empty, on any day.
    anchors: list[Event] = [(9, item, second, "v") for item, second in ((1, -900), (2, -500), (3, 900), (4, 901))]
    days = [anchors if key == "ts" else [(9, i, n, "v") for n, i in enumerate((1, 2, 3, 4))], *days]
    split = SplitConfig(
        protocol="time" if key == "ts" else "loo", valid_share=0.0 if key == "ts" else 0.1, test_share=0.3
    )
    config = PrepareConfig(split=split, shards=shards, events=policies)
    files = [_write(folder / f"{number}.csv", day, key, prefix) for number, day in enumerate(days)]
    whole = _write(folder / "whole.csv", [event for day in days for event in day], key, prefix)
    grown = prepare(files[0], folder / "grown", config)
    indices: dict[Any, int] = {}
    for file in files[1:]:
        indices |= {raw: n + 1 for n, raw in enumerate(grown.items.decode(range(1, grown.num_items + 1)))}
        grown = append(file, folder / "grown")
        assert grown.items.encode(list(indices)).tolist() == list(indices.values())
        _check_whole(grown)
    rebuilt = prepare(whole, folder / "rebuilt", config)
    assert _sequences(grown) == _sequences(rebuilt)
    assert grown.manifest["cuts_us"] == rebuilt.manifest["cuts_us"]
    assert grown.manifest["splits"] == rebuilt.manifest["splits"]
    same = ("lines", "good", "rejected", "events", "users", "items", "events_read")
    assert {name: grown.manifest["counts"][name] for name in same} == {
        name: rebuilt.manifest["counts"][name] for name in same
    }
    left_out = [dataset.manifest["counts"]["left_out"] for dataset in (grown, rebuilt)]
    if duplicates == "drop" and repeats == "first":
        # What is a duplicate and a repeat both is counted by the policy that meets it first, and days meet it apart.
        left_out = [sum(counts.values()) for counts in left_out]
    assert left_out[0] == left_out[1]


def _days(folder: Path) -> tuple[Path, Path]:
    first = [(u, i, 100 * u + i, "v") for u in range(1, 6) for i in range(1, 7)]
    second = [(u, i, 1000 + 10 * i, "v") for u in (2, 5, 7) for i in (1, 8, 9)] + [(3, 9, 50, "v"), (3, 2, 305, "b")]
    return _write(folder / "first.csv", first), _write(folder / "second.csv", second)


def test_what_a_day_brought_stands_in_the_manifest(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    before = prepare(first, tmp_path / "data", PrepareConfig())
    said: list[str] = []
    after = append(second, tmp_path / "data", said.append)
    (day,) = after.manifest["appends"]
    assert [source["name"] for source in day.pop("sources")] == ["second.csv"]
    assert day == {
        "events": 11,
        "new_users": 1,
        "new_items": 2,
        "late_events": 2,
        "superseded_events": 0,
        "newly_eligible_items": 0,
        "first_new_user_index": 6,
        "first_new_item_index": 7,
    }
    assert after.manifest["sources"] == before.manifest["sources"]
    assert after.items.decode([7, 8]) == [9, 8]
    assert after.manifest["cuts_us"] != before.manifest["cuts_us"]
    assert "2 late events" in said
    assert any(line.startswith("cuts moved from 2017-07-14T") for line in said)
    # Late events stand where they belong.
    assert _sequences(after)[3][0] == [9, 1, 2, 3, 4, 5, 2, 6]


def test_the_same_source_twice_changes_nothing(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    said: list[str] = []
    append(first, out, said.append)
    assert said[-1].endswith("first.csv was appended before; nothing changes")
    wanted = append(second, out).data_hash
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert append(second, out, said.append).data_hash == wanted
    assert said[-1].endswith("second.csv was appended before; nothing changes")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_folder_with_an_old_file_is_refused(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    (tmp_path / "days").mkdir()
    for file in (first, second):
        (tmp_path / "days" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"days: first\.csv is in .*data already; name the new files alone"):
        append(tmp_path / "days", out)


def test_an_edited_dataset_is_not_grown_under_a_hash_of_its_own(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    items = out / "shards" / "00000" / "items.npy"
    data = bytearray(items.read_bytes())
    data[-4] ^= 1
    items.write_bytes(bytes(data))
    with pytest.raises(DataError, match="a byte differs: prepare it again"):
        append(second, out)


def test_preparing_again_after_an_append_does_nothing(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    grown, said = append(second, out), list[str]()
    assert prepare(first, out, PrepareConfig(), said.append).data_hash == grown.data_hash
    assert said[-1] == f"{out}: up to date, with 1 appended"


def test_items_become_eligible_with_their_new_events_alone(tmp_path: Path) -> None:
    first = [(u, i, 10 * u + i, "v") for u in (1, 2, 3) for i in (1, 2, 3)] + [(1, 7, 90, "v"), (4, 8, 91, "v")]
    filters, split = FilterConfig(min_item_events=3, min_user_events=3), SplitConfig(protocol="loo-novalid")
    config = PrepareConfig(filters=filters, split=split)
    out = prepare(_write(tmp_path / "0.csv", first), tmp_path / "data", config).path
    held = pl.read_parquet(out / "held_back.parquet")
    assert held.rows() == [("item", "7", 1), ("item", "8", 1)]
    # 7 has two events now, 8 has three; user 4 has one at an eligible item, user 5 three.
    day = [(2, 7, 200, "v"), (2, 8, 201, "v"), (3, 8, 202, "v"), (4, 1, 203, "v"), (5, 1, 204, "v"), (5, 2, 205, "v")]
    grown = append(_write(tmp_path / "1.csv", [*day, (5, 3, 206, "v")]), out)
    assert {user: items for user, (items, *_) in _sequences(grown).items()} == {
        1: [1, 2, 3],
        2: [1, 2, 3, 8],
        3: [1, 2, 3, 8],
        5: [1, 2, 3],
    }
    assert grown.manifest["appends"][0]["newly_eligible_items"] == 1
    assert pl.read_parquet(out / "held_back.parquet").rows() == [("item", "7", 2), ("user", "4", 1)]
    # A third event of 7 makes it eligible; two more of user 4 make the user so, with these two alone.
    day = [(3, 7, 300, "v"), (4, 2, 301, "v"), (4, 3, 302, "v")]
    grown = append(_write(tmp_path / "2.csv", day), out)
    assert _sequences(grown)[4][0] == [2, 3]
    assert _sequences(grown)[3][0] == [1, 2, 3, 8, 7]
    assert pl.read_parquet(out / "held_back.parquet").is_empty()
    assert grown.items.decode(range(1, 6)) == [1, 2, 3, 8, 7]


def test_a_core_cannot_grow(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig(filters=FilterConfig(k_core=2))).path
    with pytest.raises(DataError, match=r"filters\.k_core=2 cannot be appended to: .*; prepare all days anew, or with"):
        append(second, out)


def test_another_order_is_refused(tmp_path: Path) -> None:
    first, _ = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    before = json.loads((out / "manifest.json").read_text())
    rows = _write(tmp_path / "rows.csv", [(1, 1, 0, "v")], None)
    with pytest.raises(
        DataError, match=r"rows\.csv: its events are ordered by rows, those of .*data by time; name its"
    ):
        append(rows, out)
    assert json.loads((out / "manifest.json").read_text()) == before


def test_what_is_no_dataset_cannot_grow(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    with pytest.raises(DataError, match="no such folder; make one with: recsys prepare"):
        append(second, tmp_path / "data")
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["appends"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="was prepared by an older version, which kept too little; prepare it again"):
        append(second, out)


def test_too_many_bad_lines_leave_the_dataset_as_it_was(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    wanted = prepare(first, tmp_path / "data", PrepareConfig()).data_hash
    second.write_text(second.read_text() + "broken\n" * 5)
    with pytest.raises(DataError, match=r"5 of 16 lines rejected"):
        append(second, tmp_path / "data")
    assert PreparedDataset.open(tmp_path / "data").data_hash == wanted
    loose = PrepareConfig(read=ReadConfig(max_rejected_share=0.5))
    prepare(first, tmp_path / "data", loose)
    grown = append(second, tmp_path / "data")
    assert grown.manifest["counts"]["rejected_by_reason"] == {"missing fields: 1 of 4": 5}
    assert pl.read_parquet(tmp_path / "data" / "rejected.parquet")["file"].to_list() == ["second.csv"] * 5


def test_a_user_with_a_text_for_an_id_is_rejected_where_ids_are_integers(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig(read=ReadConfig(max_rejected_share=0.2))).path
    second.write_text(second.read_text() + f"abc,1,v,{START + 2000}\n")
    grown = append(second, out)
    assert grown.manifest["counts"]["rejected_by_reason"] == {"user_id is no integer": 1}
    assert grown.users.kind == "int"
    texts = tmp_path / "texts.csv"
    texts.write_text("user,item,event,ts\n" + "".join(f"u{n},{n},v,{START + n}\n" for n in range(9)))
    wanted = r"data holds integers as user_id; for texts prepare it again, all days, with read\.user_ids=str; 9 of 9"
    with pytest.raises(DataError, match=wanted):
        append(texts, out)


def test_the_items_table_grows_with_the_vocabulary(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"{i},t{i}\n" for i in range(1, 9)))
    out = prepare(first, tmp_path / "data", PrepareConfig(items=items)).path
    said: list[str] = []
    grown = append(second, out, said.append)
    table = pl.read_parquet(out / "items.parquet")
    assert table["item_index"].to_list() == list(range(1, 9))
    assert table["item_id"].to_list() == grown.items.decode(range(1, 9))
    assert table["title"].to_list()[6:] == [None, None]
    assert grown.manifest["items_table"]["not_described"] == 2
    assert "2 new items are not described; describe them by: --items TABLE" in said
    third = _write(tmp_path / "third.csv", [(1, 10, 3000, "v")])
    items.write_text("item_id,title\n" + "".join(f"{i},T{i}\n" for i in range(1, 12)))
    grown = append(third, out, items=items)
    table = pl.read_parquet(out / "items.parquet")
    assert table["title"].to_list() == [f"T{item}" for item in grown.items.decode(range(1, 10))]
    assert grown.manifest["config"]["items"][0]["bytes"] == items.stat().st_size


def test_clamped_times_take_the_latest_credible_one_of_all_days(tmp_path: Path) -> None:
    first, _ = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    last = max(int(shard.times.max()) for shard in PreparedDataset.open(out).shards if shard.times is not None)
    day = tmp_path / "day.csv"
    day.write_text(f"user,item,event,ts\n1,1,v,{START + 5}\n1,2,v,9999999999\n")
    told: list[str] = []
    grown = append(day, out, told.append)
    assert grown.manifest["counts"]["clamped"] == 1
    assert _sequences(grown)[1][1][-1] == last
    said = "1 time in the future set back to the latest credible one, the first: day.csv:3"
    assert [note for note in grown.manifest["notes"] if "future" in note] == [said]
    assert [line for line in told if "future" in line] == [f"day.csv: {said}"]
    late = tmp_path / "late.csv"
    late.write_text("user,item,event,ts\n1,1,v,9999999999\n1,2,v,9999999998\n")
    told.clear()
    assert _sequences(append(late, out, told.append))[1][1][-2:] == [last, last]
    said = "all 2 times in the future set back to the latest one of the dataset"
    assert [line for line in told if "future" in line] == [f"late.csv: {said}"]
    with pytest.raises(DataError, match="all 2 times lie in the future; mend them"):
        prepare(late, tmp_path / "late", PrepareConfig(), told.append)
    assert "set back" not in "".join(told[told.index(f"late.csv: {said}") + 1 :])


KILL = """
import os, pathlib, signal, sys
from recsys.features.preparation.append import append
renames, wanted = 0, int(sys.argv[3])
real = pathlib.Path.rename

def rename(path, target):
    global renames
    if renames == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
    return real(path, target)

pathlib.Path.rename = rename
if wanted < 0:
    import recsys.features.preparation.append as module
    module.split_dataset = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)
append(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [-1, 0, 1], ids=["while writing", "before it is set aside", "between both renames"])
def test_a_kill_at_any_moment_loses_nothing(moment: int, tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    folder = tmp_path / "kept"
    folder.mkdir()
    before = prepare(first, folder / "data", PrepareConfig()).data_hash
    done = subprocess.run([sys.executable, "-c", KILL, str(second), str(folder / "data"), str(moment)], check=False)
    assert done.returncode == -signal.SIGKILL
    leftovers = [path.name for path in folder.iterdir() if path.name != "data"]
    assert leftovers
    if moment == 1:
        assert not (folder / "data").exists()
    else:
        assert PreparedDataset.open(folder / "data").data_hash == before
        PreparedDataset.open(folder / "data").verify()
    grown = append(second, folder / "data")
    assert grown.num_events == 41
    assert [path.name for path in folder.iterdir()] == ["data"]


def test_a_full_disk_leaves_the_old_dataset(tmp_path: Path) -> None:
    first, _ = _days(tmp_path)
    many = _write(tmp_path / "many.csv", [(u, u % 50, 2000 + u, "v") for u in range(2000)])
    wanted = prepare(first, tmp_path / "data", PrepareConfig()).data_hash
    message = r"data: cannot be written \(.+\); free space or name"
    with most_bytes_of_a_file(4_000), pytest.raises(StorageError, match=message):
        append(many, tmp_path / "data")
    assert PreparedDataset.open(tmp_path / "data").data_hash == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "first.csv", "many.csv", "second.csv"]


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path

    def interrupt(line: str) -> None:
        if "split" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        append(second, out, interrupt)
    assert PreparedDataset.open(out).num_events == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "first.csv", "second.csv"]


@pytest.mark.parametrize("repeats", ["keep", "collapse", "first", "last"])
@pytest.mark.parametrize("ties", ["file", "item", "shuffle"])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_every_policy_takes_a_day_that_comes_back_to_old_items(
    repeats: Any, ties: Any, duplicates: Any, tmp_path: Path
) -> None:
    first = [(u, 1 + (u + n) % 7, 100 * n + u // 2, "v") for n in range(8) for u in range(1, 6)]
    again = [(u, 1 + (u + n) % 7, 900 + 10 * n, "v") for n in (0, 1) for u in (1, 2, 3)]
    tied = [(4, 3, 700, "v"), (4, 3, 702, "v"), (1, 2, 700, "v"), (5, 9, 921, "v"), (5, 9, 921, "v"), (6, 1, 930, "v")]
    config = PrepareConfig(events=EventConfig(repeats=repeats, ties=ties, duplicates=duplicates), shards=2)
    before = prepare(_write(tmp_path / "0.csv", first), tmp_path / "data", config)
    known = before.items.decode(range(1, before.num_items + 1))
    grown = append(_write(tmp_path / "1.csv", [*again, *tied]), tmp_path / "data")
    assert grown.items.decode(range(1, len(known) + 1)) == known
    rebuilt = prepare(_write(tmp_path / "all.csv", [*first, *again, *tied]), tmp_path / "rebuilt", config)
    assert _sequences(grown) == _sequences(rebuilt)
    superseded = grown.manifest["appends"][0]["superseded_events"]
    assert (superseded > 0) == (repeats == "last")
    # A third day still finds the order of what the second brought.
    assert append(_write(tmp_path / "2.csv", [(6, 9, 1000, "v"), (7, 10, 1001, "v")]), tmp_path / "data").num_items == 9


def test_superseded_events_excuse_no_order_where_no_policy_supersedes(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    out = prepare(first, tmp_path / "data", PrepareConfig()).path
    append(second, out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["appends"][0] |= {"superseded_events": 1, "late_events": 0}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "vocabulary order" in {leak.name for leak in find_leaks(PreparedDataset.open(out))}
    manifest["appends"][0]["superseded_events"] = 12
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert {leak.name for leak in find_leaks(PreparedDataset.open(out))} == {"changed manifest"}


def test_an_event_of_the_last_old_moment_is_not_late(tmp_path: Path) -> None:
    first = [(u, 1 + (u + n) % 4, 10 * n, "v") for u in (1, 2, 3) for n in range(10)]
    out = prepare(_write(tmp_path / "0.csv", first), tmp_path / "data", PrepareConfig()).path
    grown = append(_write(tmp_path / "1.csv", [(1, 2, 90, "v"), (2, 3, 89, "v"), (3, 4, 91, "v")]), out)
    assert grown.manifest["appends"][0]["late_events"] == 1


def test_a_position_the_user_has_already_is_not_late(tmp_path: Path) -> None:
    first = [(u, 1 + (u + n) % 4, n, "v") for u in (1, 2) for n in range(5)]
    config = PrepareConfig(split=SplitConfig(protocol="loo"))
    out = prepare(_write(tmp_path / "0.csv", first, "position"), tmp_path / "data", config).path
    grown = append(_write(tmp_path / "1.csv", [(1, 2, 4, "v"), (2, 3, 3, "v"), (1, 4, 5, "v")], "position"), out)
    assert grown.manifest["appends"][0]["late_events"] == 1


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    first, second = _days(tmp_path)
    folder = tmp_path / "kept"
    out = prepare(first, folder / "data", PrepareConfig()).path
    refused: list[str] = []

    def meanwhile(line: str) -> None:
        if "split" not in line:
            return
        for arguments in (["--append"], ["--set", "split.protocol=loo"]):
            command = [sys.executable, "-m", "recsys", "prepare", "--source", str(first), "--out", str(out), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 2
            refused.append(done.stderr.strip().splitlines()[-1])

    assert append(second, out, meanwhile).num_events == 41
    assert len(refused) == 2
    assert all(line.endswith("data: another process writes there; wait for it") for line in refused)
    (folder / ".data.lock").touch()
    third = _write(tmp_path / "third.csv", [(1, 1, 9000, "v")])
    assert append(third, out).num_events == 42
    assert [path.name for path in folder.iterdir()] == ["data"]

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys import config as configuration
from recsys.errors import ConfigError, DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.preparation import progress, reading
from recsys.features.preparation.assemble import cuts_of
from recsys.features.prepare import FilterConfig, PrepareConfig, ReadConfig, SplitConfig, prepare
from recsys.features.splits import time_cuts
from tests.features.logs import START, bytes_of, write_log


def _events(dataset: PreparedDataset) -> dict[Any, list[tuple[Any, int | None]]]:
    """Raw user id -> (raw item id, time) of each event, in order."""
    found: dict[Any, list[tuple[Any, int | None]]] = {}
    for shard in dataset.shards:
        for row, user in enumerate(dataset.users.decode(shard.users)):
            part = slice(shard.offsets[row], shard.offsets[row + 1])
            times = [None] * (part.stop - part.start) if shard.times is None else shard.times[part].tolist()
            found[user] = list(zip(dataset.items.decode(shard.items[part]), times, strict=True))
    return found


@settings(max_examples=25, deadline=None)
@given(
    log=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5)), min_size=10, max_size=40),
    key=st.sampled_from(["ts", "position", None]),
    shards=st.sampled_from([1, 2, 5]),
)
def test_every_event_is_there_in_order_with_ties_by_row(
    log: list[tuple[int, int, int]], key: str | None, shards: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("prepare")
    base = START if key == "ts" else 0
    header = ",".join(["user", "item", *([key] if key else [])])
    rows = [",".join(map(str, (u, i, base + t) if key else (u, i))) for u, i, t in log]
    (folder / "log.csv").write_text("\n".join([header, *rows]))
    config = PrepareConfig(split=SplitConfig(protocol="loo-novalid"), shards=shards)
    users = [u for u, _, _ in log]
    if len(set(users)) == len(users):
        with pytest.raises(DataError, match="too few events"):
            prepare(folder / "log.csv", folder / "data", config)
        return
    dataset = prepare(folder / "log.csv", folder / "data", config)
    ordered = sorted(log, key=lambda event: event[2]) if key else log
    found = _events(dataset)
    for user in {u for u, _, _ in log}:
        wanted = [(i, (START + t) * 10**6 if key == "ts" else None) for u, i, t in ordered if u == user]
        assert found[user] == wanted
    first = sorted(log, key=lambda event: event[2]) if key == "ts" else log
    assert dataset.items.decode(range(1, dataset.num_items + 1)) == list(dict.fromkeys(i for _, i, _ in first))
    assert dataset.users.decode(range(1, dataset.num_users + 1)) == list(dict.fromkeys(u for u, _, _ in first))


def test_the_same_log_gives_the_same_bytes_whatever_its_format(tmp_path: Path) -> None:
    frame = pl.read_csv(write_log(tmp_path / "log.csv"))
    frame.write_parquet(tmp_path / "one.parquet")
    frame.write_parquet(tmp_path / "many.parquet", row_group_size=7)
    frame.write_ndjson(tmp_path / "log.jsonl")
    names = ("log.csv", "one.parquet", "many.parquet", "log.jsonl")
    made = [prepare(tmp_path / name, tmp_path / f"{name}.data", PrepareConfig(shards=3)) for name in names]
    assert len({dataset.data_hash for dataset in made}) == 1
    arrays = [{k: v for k, v in bytes_of(dataset.path).items() if k != "manifest.json"} for dataset in made]
    assert all(other == arrays[0] for other in arrays)


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", num_users=300)
    code = (
        "import sys; from pathlib import Path; from recsys.features.prepare import PrepareConfig, prepare; "
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig())"
    )
    for threads in ("1", "4"):
        env = os.environ | {"POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads}
        subprocess.run([sys.executable, "-c", code, str(log), str(tmp_path / threads)], check=True, env=env)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "4")


def test_nothing_is_done_again_for_the_same_source_and_configuration(tmp_path: Path) -> None:
    log, out, said = write_log(tmp_path / "log.csv"), tmp_path / "data", list[str]()
    prepare(log, out, PrepareConfig(), said.append)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    prepare(log, out, PrepareConfig(), said.append)
    assert said[-1] == f"{out}: up to date"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    prepare(log, out, PrepareConfig(split=SplitConfig(protocol="loo")), said.append)
    assert PreparedDataset.open(out).protocol == "loo"
    write_log(log, seed=1)
    prepare(log, out, PrepareConfig(split=SplitConfig(protocol="loo")), said.append)
    assert sum("up to date" in line for line in said) == 1


def test_a_damaged_dataset_is_made_again(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "log.csv"), tmp_path / "data"
    wanted = prepare(log, out, PrepareConfig()).data_hash
    items = out / "shards" / "00000" / "items.npy"
    items.write_bytes(items.read_bytes()[:-4])
    assert prepare(log, out, PrepareConfig()).data_hash == wanted
    PreparedDataset.open(out).verify()


def test_an_edited_dataset_is_made_again_and_it_is_told(tmp_path: Path) -> None:
    log, out, said = write_log(tmp_path / "log.csv"), tmp_path / "data", list[str]()
    wanted = prepare(log, out, PrepareConfig()).data_hash
    items = out / "shards" / "00000" / "items.npy"
    items.write_bytes(items.read_bytes()[:-4] + b"\x01\x00\x00\x00")
    with pytest.raises(DataError, match="a byte differs"):
        PreparedDataset.open(out).verify()
    prepare(log, out, PrepareConfig(), said.append)
    PreparedDataset.open(out).verify()
    assert PreparedDataset.open(out).data_hash == wanted
    assert f"{out}: its bytes are not those that were prepared; it is prepared anew" in said


def test_each_step_says_its_time_and_counts(tmp_path: Path) -> None:
    said: list[str] = []
    prepare(write_log(tmp_path / "log.csv"), tmp_path / "data", PrepareConfig(), said.append)
    assert "log.csv: sha256 of 1 file(s)" in said[0]
    assert "240 lines read in" in said[1]
    assert "a second): 240 good, 0 rejected, order: time" in said[1]
    assert "240 events kept, of 20 users" in said[2]
    assert "events prepared in" in said[-1]


def test_too_many_bad_lines_stop_the_job_and_can_be_inspected(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "log.csv"), tmp_path / "data"
    kept = prepare(log, out, PrepareConfig()).data_hash
    lines = log.read_text().splitlines()
    for number in range(9, 39):
        lines[number] = "broken"
    log.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        prepare(log, out, PrepareConfig())
    message = str(caught.value)
    assert "30 of 240 lines rejected (12.5%), more than read.max_rejected_share=0.05" in message
    assert "log.csv:10: missing fields: 1 of 3; log.csv:11: " in message
    assert "\n" not in message
    kept_at = tmp_path / "data.rejected.parquet"
    assert str(kept_at) in message
    assert pl.read_parquet(kept_at).rows()[0] == ("log.csv", 10, "missing fields: 1 of 3", "broken")
    assert PreparedDataset.open(out).data_hash == kept
    told = prepare(log, out, PrepareConfig(read=ReadConfig(max_rejected_share=0.125)))
    assert told.manifest["counts"]["rejected_by_reason"] == {"missing fields: 1 of 3": 30}
    assert pl.read_parquet(out / "rejected.parquet").height == 30


def test_a_split_by_time_of_data_without_times_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3 4\n2 3 4 5\n")
    with pytest.raises(DataError, match=r"split\.protocol=time needs real times, .* by rows; use --protocol loo"):
        prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="time")))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (range(-1_500_000_000, -1_499_999_990), "ts holds negative numbers, which are no times; mend them; or use"),
        (range(1000, 1010), r"ts holds numbers before 1973-03, .*; read\.order=time reads them as times; or use"),
    ],
)
def test_a_split_by_time_is_refused_with_what_is_wrong_with_the_times(times: range, why: str, tmp_path: Path) -> None:
    rows = "".join(f"{n % 3},{n},{time}\n" for n, time in enumerate(times))
    (tmp_path / "a.csv").write_text("user,item,ts\n" + rows)
    config = PrepareConfig(split=SplitConfig(protocol="time"))
    with pytest.raises(DataError, match=r"split\.protocol=time needs real times, but " + why) as caught:
        prepare(tmp_path / "a.csv", tmp_path / "data", config)
    assert "name the time column" not in str(caught.value)


def test_a_log_too_small_to_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2\n2 3\n")
    with pytest.raises(DataError, match="no user has a history and a test event"):
        prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@settings(max_examples=10, deadline=None)
@given(
    log=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=40),
    key=st.sampled_from(["ts", "position", None]),
    prefix=st.sampled_from(["", "x"]),
    minimum=st.sampled_from([1, 2]),
)
def test_chunks_change_no_byte_and_shards_no_sequence(
    log: list[tuple[int, int, int]],
    key: str | None,
    prefix: str,
    minimum: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    log = [*log, *((7, item, moment) for item, moment in ((1, 0), (2, 3), (1, 6), (2, 9)))]
    base = START if key == "ts" else 0
    header = ",".join(["user", "item", *([key] if key else [])])
    rows = [",".join(map(str, (f"{prefix}{u}", i, base + t)[: 3 if key else 2])) for u, i, t in log]
    (folder / "log.csv").write_text("\n".join([header, *rows]))
    split, filters = SplitConfig(protocol="loo"), FilterConfig(min_item_events=minimum)
    made = {}
    for chunk, shards in ((1_000_000, 1), (3, 1), (1_000_000, 4), (2, 4)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "CHUNK_ROWS", chunk)
            config = PrepareConfig(split=split, filters=filters, shards=shards)
            made[chunk, shards] = prepare(folder / "log.csv", folder / f"{chunk}-{shards}", config)
    one, four = made[1_000_000, 1], made[1_000_000, 4]
    assert bytes_of(made[3, 1].path) == bytes_of(one.path)
    assert bytes_of(made[2, 4].path) == bytes_of(four.path)
    assert _events(one) == _events(four)
    vocabulary = {name: data for name, data in bytes_of(one.path).items() if name.startswith("vocabulary")}
    assert vocabulary == {name: data for name, data in bytes_of(four.path).items() if name.startswith("vocabulary")}
    same = ("counts", "splits", "leakage", "cuts_us", "ids", "notes")
    assert {name: one.manifest[name] for name in same} == {name: four.manifest[name] for name in same}


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(0, 30), min_size=3, max_size=60),
    valid=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.1, 0.29]),
)
def test_cuts_are_those_of_the_sorted_times(times: list[int], valid: float, test: float) -> None:
    split = SplitConfig(valid_share=valid, test_share=test)
    parts = [np.array(times[start::3], np.int64) for start in range(3)]
    try:
        wanted = time_cuts(np.sort(np.array(times)), valid, test)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            cuts_of(parts, split)
        return
    assert cuts_of(parts, split) == wanted


def test_an_id_that_is_a_text_far_down_makes_all_of_them_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, said = tmp_path / "log.csv", list[str]()
    rows = [f"{n % 5},{n % 7},{START + n}" for n in range(100_000)]
    log.write_text("\n".join(["user,item,ts", *rows, f"eve,1,{START}", f"1,last,{START + 300}"]))
    wanted = prepare(log, tmp_path / "whole", PrepareConfig(read=ReadConfig(user_ids="str", item_ids="str")))
    monkeypatch.setattr(reading, "CHUNK_ROWS", 1_000)
    dataset = prepare(log, tmp_path / "data", PrepareConfig(), said.append)
    assert {line for line in said if "again" in line} == {
        "user_id holds texts as well as integers: reading starts again",
        "item_id holds texts as well as integers: reading starts again",
    }
    assert dataset.manifest["ids"] == {"users": "str", "items": "str"}
    assert dataset.data_hash == wanted.data_hash
    assert dataset.manifest["counts"] == wanted.manifest["counts"]


def test_a_user_with_a_million_events_is_prepared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    users = np.append(np.ones(1_000_000, np.int64), np.arange(2, 1_002))
    columns = {
        "user_id": users,
        "item_id": rng.integers(0, 5_000, len(users)),
        "timestamp": START + np.arange(len(users)),
    }
    pl.DataFrame(columns).sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "log.parquet")
    dataset = prepare(
        tmp_path / "log.parquet", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo"), shards=3)
    )
    lengths = np.concatenate([np.diff(shard.offsets) for shard in dataset.shards])
    assert sorted(lengths.tolist())[-2:] == [1, 1_000_000]
    (shard,) = (shard for shard in dataset.shards if len(shard.items) >= 1_000_000)
    longest = int(np.diff(shard.offsets).argmax())
    part = slice(shard.offsets[longest], shard.offsets[longest + 1])
    wanted = dataset.items.encode(columns["item_id"][:1_000_000])
    assert (shard.items[part] == wanted).all()


def test_long_steps_say_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(reading, "CHUNK_ROWS", 100)
    said: list[str] = []
    prepare(write_log(tmp_path / "log.csv"), tmp_path / "data", PrepareConfig(), said.append)
    assert any(
        re.match(r"step 1 of 3: reading: [\d,]+ of about [\d,]+ lines, [\d,]+ a second, about \d+ s left", line)
        for line in said
    )
    assert {line.split(":")[0] for line in said if line.startswith("step")} == {f"step {n} of 3" for n in (1, 2, 3)}


def test_the_manifest_tells_where_the_data_came_from(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{i},t{i}\n" for i in range(25)))
    config = PrepareConfig(items=tmp_path / "items.csv", filters=FilterConfig(min_item_events=2))
    dataset = prepare(log, tmp_path / "data", config)
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["sources"][0]["name"] == "log.csv"
    assert len(manifest["sources"][0]["sha256"]) == 64
    assert manifest["config"]["filters"]["min_item_events"] == 2
    assert manifest["ids"] == {"users": "str", "items": "int"}
    assert manifest["splits"]["train"]["events"] == int(dataset.train_counts().sum())
    assert manifest["leakage"]["filters_count_all_events"] is True
    assert str(tmp_path) not in json.dumps(manifest)
    table = pl.read_parquet(tmp_path / "data" / "items.parquet")
    assert table["item_index"].to_list() == list(range(1, dataset.num_items + 1))
    assert table["item_id"].to_list() == dataset.items.decode(range(1, dataset.num_items + 1))
    assert manifest["items_table"]["not_described"] == table["title"].null_count()


def test_a_changed_items_table_is_joined_again(tmp_path: Path) -> None:
    log, items = write_log(tmp_path / "log.csv"), tmp_path / "items.csv"
    for title in ("a", "b"):
        items.write_text(f"item_id,title\n1,{title}\n")
        prepare(log, tmp_path / "data", PrepareConfig(items=items))
        assert title in pl.read_parquet(tmp_path / "data" / "items.parquet")["title"].to_list()


def test_the_configuration_is_read_from_plain_values() -> None:
    plain = {"filters": {"k_core": 5}, "split": {"protocol": "ratio"}, "read": {"names": ["user_id", "item_id"]}}
    config = configuration.load(PrepareConfig, plain)
    assert config.filters.k_core == 5
    assert configuration.load(PrepareConfig, configuration.dump(config)) == config
    with pytest.raises(ConfigError, match=r"filters\.min_item_event: unknown key; did you mean 'min_item_events'"):
        configuration.load(PrepareConfig, {"filters": {"min_item_event": 5}})
    with pytest.raises(ConfigError, match="shards=0"):
        configuration.load(PrepareConfig, {"shards": 0})


def test_packed_text_is_read_as_it_stands(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.read_bytes(), mtime=0))
    plain = prepare(log, tmp_path / "a", PrepareConfig())
    assert prepare(tmp_path / "log.csv.gz", tmp_path / "b", PrepareConfig()).data_hash == plain.data_hash


def test_the_documented_manifest_has_the_keys_of_a_real_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    documented = json.loads(page.split("```json\n", 1)[1].split("```", 1)[0])
    manifest = prepare(write_log(tmp_path / "log.csv"), tmp_path / "data", PrepareConfig()).manifest
    assert documented.keys() == manifest.keys()
    for group in ("counts", "splits", "leakage", "ids", "config"):
        assert documented[group].keys() == manifest[group].keys()
    assert documented["sources"][0].keys() == manifest["sources"][0].keys()


def test_an_empty_type_is_none_whatever_the_format(tmp_path: Path) -> None:
    rows = [(u, i, START + 10 * u + i, None if i % 3 == 0 else "view") for u in range(8) for i in range(6)]
    log = pl.DataFrame(rows, schema=["user", "item", "ts", "event"], orient="row")
    log.write_csv(tmp_path / "log.csv")
    log.write_parquet(tmp_path / "log.parquet")
    types = configuration.load(PrepareConfig, {"events": {"types": ["view"]}, "split": {"protocol": "loo"}})
    for config, left_out in ((PrepareConfig(split=SplitConfig(protocol="loo")), {}), (types, {"type:(none)": 16})):
        made = [prepare(tmp_path / f"log.{kind}", tmp_path / kind, config) for kind in ("csv", "parquet")]
        assert [one.manifest["counts"]["left_out"] for one in made] == [left_out] * 2
        assert made[0].manifest["data_hash"] == made[1].manifest["data_hash"]
        kept = [pl.read_parquet(tmp_path / kind / "shards/00000/append.parquet") for kind in ("csv", "parquet")]
        assert kept[0].equals(kept[1])
        assert kept[0]["event_type"].null_count() == (0 if left_out else 16)
    with pytest.raises(DataError, match=r"names 'buy', which no event has; found \(none\), view"):
        prepare(
            tmp_path / "log.csv", tmp_path / "csv", configuration.load(PrepareConfig, {"events": {"types": ["buy"]}})
        )

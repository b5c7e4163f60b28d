"""Sources of many files, and what can be wrong with some of them."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from recsys.errors import DataError, MixedIds
from recsys.features.readers import hash_sources, open_interactions, read_interactions, with_string_ids
from recsys.features.schema import ALIASES, ReadConfig, plain_name

GOOD = b"user,item,ts\n1,2,1500000000\n1,3,1500000001\n"


def _folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _parquet(path: Path, **columns: Any) -> bytes:
    pl.DataFrame(columns).write_parquet(path / "made.parquet", row_group_size=3)
    data = (path / "made.parquet").read_bytes()
    (path / "made.parquet").unlink()
    return data


def test_files_stand_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log", {"b/1.csv": GOOD, "a.csv": GOOD, ".hidden/x.csv": b"?", "b/_SUCCESS": b""})
    source = open_interactions(folder, ReadConfig())
    assert [(file.name, file.bytes) for file in source.files] == [("a.csv", len(GOOD)), ("b/1.csv", len(GOOD))]
    assert source.notes == ["2 hidden files left out: .hidden/x.csv, b/_SUCCESS"]
    assert [entry["name"] for entry in hash_sources(source)] == ["a.csv", "b/1.csv"]
    found = read_interactions(tmp_path / "l*g" / "**" / "*.csv", ReadConfig())
    assert [entry["name"] for entry in found.sources] == ["log/a.csv", "log/b/1.csv"]
    assert found.interactions.select("file", "line").rows() == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_formats_may_be_mixed_where_columns_and_order_are_the_same(tmp_path: Path) -> None:
    lines = {"user": 5, "item": 6, "ts": "2017-07-14T02:40:02", "event": "view"}
    parquet = _parquet(tmp_path, uid=[7], iid=[8], datetime=[1_500_000_003])
    files = {"a.csv": GOOD, "b.jsonl": json.dumps(lines).encode(), "c.parquet": parquet}
    result = read_interactions(_folder(tmp_path / "log", files), ReadConfig())
    assert result.interactions.select("user_id", "item_id", pl.col("timestamp") // 10**6, "event_type").rows() == [
        (1, 2, 1_500_000_000, None),
        (1, 3, 1_500_000_001, None),
        (5, 6, 1_500_000_002, "view"),
        (7, 8, 1_500_000_003, None),
    ]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (b"user,item\n1,2\n", r"b\.csv: holds neither times nor positions, but a\.csv holds times, as do 2 of 3 files"),
        (b"user,item,ts\n1,2,7\n", r"b\.csv: holds positions, but a\.csv holds times"),
        (b"user,ts\n1,1500000000\n", r"b\.csv: no column for item_id"),
        (gzip.compress(GOOD * 9, mtime=0)[:-9], r"b\.csv: gzip file is cut short"),
        (pa.compress(GOOD * 99, "zstd", asbytes=True)[:-5], r"b\.csv: zstd file is damaged"),
        (b"PAR1" + bytes(99), r"b\.csv: Parquet file is damaged"),
        (b"PK\x03\x04" + bytes(99), r"b\.csv: is packed by zip; wanted plain, gzip or zstd; unpack it first"),
        (b"", r"b\.csv: is empty"),
        (
            "user,item,ts\n1,café,1500000000\n".encode("latin-1"),
            r"b\.csv: 1 of 2 lines are not UTF-8.*for this file alone, read\.encodings=\{\"b\.csv\": \"latin-1\"\}",
        ),
    ],
)
def test_one_broken_file_of_many_is_named_and_may_be_skipped(other: bytes, message: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log", {"a.csv": GOOD, "b.csv": other, "c.csv": GOOD})
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(folder, ReadConfig())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("or set read.bad_files=skip to leave such files out")
    result = read_interactions(folder, ReadConfig(bad_files="skip"))
    assert result.counts["good"] == 4
    assert [entry["name"] for entry in result.sources] == ["a.csv", "c.csv"]
    assert result.notes[0].startswith("b.csv: left out: ")


def test_a_file_that_breaks_far_behind_its_beginning_is_left_out_whole(tmp_path: Path) -> None:
    long = b"user,item,ts\n" + b"".join(b"%d,%d,%d\n" % (n, n * n, 1_500_000_000 + n) for n in range(60_000))
    folder = _folder(tmp_path / "log", {"a.csv": GOOD, "b.csv.gz": gzip.compress(long, 1)[:-9]})
    source = open_interactions(folder, ReadConfig())
    with pytest.raises(DataError, match=r"b\.csv\.gz: gzip file is cut short.*bad_files=skip"):
        list(source.chunks())
    assert read_interactions(folder, ReadConfig(bad_files="skip")).counts["lines"] == 2


def test_nothing_but_broken_files_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log", {"a.csv": b"", "b.csv": b"user,item\n"})
    with pytest.raises(DataError, match="none of its 2 files has an event"):
        read_interactions(folder, ReadConfig(bad_files="skip"))


def test_files_without_events_are_told(tmp_path: Path) -> None:
    empty = _parquet(tmp_path, user=pl.Series([], dtype=pl.Int64), item=pl.Series([], dtype=pl.Int64))
    full = _parquet(tmp_path, user=[1, 2], item=[3, 4])
    result = read_interactions(_folder(tmp_path / "log", {"0.parquet": empty, "1.parquet": full}), ReadConfig())
    assert result.counts["good"] == 2
    assert result.notes[0] == "0.parquet: has a header and no data"


def test_two_encodings_in_one_folder_are_told_by_a_mapping(tmp_path: Path) -> None:
    text = "user,item,ts\n1,café,1500000000\n"
    files = {"new.csv": text.encode(), "old/1.csv": text.encode("latin-1"), "old/2.csv": text.encode("latin-1")}
    folder = _folder(tmp_path / "log", files)
    result = read_interactions(folder, ReadConfig(encodings={"old/*.csv": "latin-1"}))
    assert result.interactions["item_id"].to_list() == ["café"] * 3
    with pytest.raises(ValueError, match=r"encodings\.x='utf-17': unknown"):
        ReadConfig(encodings={"x": "utf-17"})


def test_texts_after_integers_make_all_ids_texts_whatever_the_chunk(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n},{1_500_000_000 + n}\n" for n in range(40_000))
    path = _folder(tmp_path, {"a.csv": f"user,item,ts\n{rows}x7,8,1500000000\n".encode()}) / "a.csv"
    for size in (7_000, 1_000_000):
        with pytest.raises(MixedIds, match=r"user_id holds texts after integers; set read\.user_ids=str") as caught:
            list(open_interactions(path, ReadConfig()).chunks(rows=size))
        assert caught.value.column == "user_id"
        source = open_interactions(path, with_string_ids(ReadConfig(), caught.value.column))
        assert pl.concat([c.interactions for c in source.chunks(rows=size)])["user_id"].to_list()[-2:] == [
            "39999",
            "x7",
        ]
    assert read_interactions(path, ReadConfig()).user_kind == "str"


def test_an_id_beyond_int64_is_set_aside_and_taken_as_text(tmp_path: Path) -> None:
    path = _folder(tmp_path, {"a.csv": b"user,item\n1,2\n9223372036854775808,2\n-9223372036854775808,2\n"}) / "a.csv"
    result = read_interactions(path, ReadConfig(max_rejected_share=1.0))
    assert result.rejected.rows() == [("a.csv", 3, "user_id is beyond int64", "9223372036854775808,2")]
    assert result.interactions["user_id"].to_list() == [1, -(2**63)]
    told = read_interactions(path, ReadConfig(user_ids="str"))
    assert told.interactions["user_id"].to_list() == ["1", "9223372036854775808", "-9223372036854775808"]
    unsigned = pl.DataFrame({"user": pl.Series([2**63, 1], dtype=pl.UInt64), "item": [1, 1]})
    unsigned.write_parquet(tmp_path / "a.parquet")
    told = read_interactions(tmp_path / "a.parquet", ReadConfig(user_ids="str"))
    assert told.interactions["user_id"].to_list() == ["9223372036854775808", "1"]


def test_a_clamped_time_is_empty_in_a_chunk_and_set_back_when_all_is_read(tmp_path: Path) -> None:
    path = _folder(tmp_path, {"a.csv": b"user,item,ts\n1,2,4000000000\n1,3,1500000000\n1,4,-5\n"}) / "a.csv"
    config = ReadConfig(max_rejected_share=1.0)
    (chunk,) = open_interactions(path, config).chunks()
    assert chunk.interactions.select("timestamp", "is_clamped").rows() == [(None, True), (1_500_000_000_000_000, False)]
    assert chunk.rejected["reason"].to_list() == ["timestamp is negative"]
    assert read_interactions(path, config).interactions["timestamp"].to_list() == [1_500_000_000_000_000] * 2
    path.write_bytes(b"user,item,ts\n1,2,4000000000\n")
    with pytest.raises(DataError, match=r"a\.csv: every time lies in the future; check the clock"):
        read_interactions(path, config)


def test_chunks_may_be_read_again_from_the_start(tmp_path: Path) -> None:
    path = _folder(tmp_path, {"a.csv": b"user,item,ts\n1,2,4000000000\n1,3,1500000000\n"}) / "a.csv"
    source = open_interactions(path, ReadConfig())
    first = [chunk.interactions.rows() for chunk in source.chunks()]
    notes = list(source.notes)
    assert [chunk.interactions.rows() for chunk in source.chunks()] == first
    assert source.notes == notes
    assert len(notes) == 1
    with pytest.raises(ValueError, match="rows=0"):
        next(source.chunks(rows=0))


def test_a_user_with_a_million_events_is_one_user(tmp_path: Path) -> None:
    times = pl.int_range(1_500_000_000, 1_501_000_000, eager=True)
    pl.DataFrame({"user": "x", "item": times % 1000, "ts": times}).write_parquet(tmp_path / "a.parquet")
    source = open_interactions(tmp_path / "a.parquet", ReadConfig())
    chunks = list(source.chunks(rows=300_000))
    assert [chunk.num_good for chunk in chunks] == [300_000] * 3 + [100_000]
    assert {user for chunk in chunks for user in chunk.interactions["user_id"].unique()} == {"x"}


@pytest.mark.parametrize(
    ("header", "row", "wanted"),
    [
        ("user_id:token,item_id:token,rating:float,timestamp:float", "1,2,3.5,1500000000", (1, 2, 3.5, 1_500_000_000)),
        ("user_id,item_id,weight,datetime", "1,2,3,2017-07-14", (1, 2, 3.0, 1_499_990_400)),
        ("query_id,item_id,timestamp,rating", "1,2,1500000000,3", (1, 2, 3.0, 1_500_000_000)),
        ("user_idx,item_idx,relevance,timestamp", "1,2,3,1500000000", (1, 2, 3.0, 1_500_000_000)),
        ("user,item,rating,timestamp", "1,2,3,1500000000.25", (1, 2, 3.0, 1_500_000_000)),
        ("userID,itemID,rating,timestamp", "1,2,3,1500000000", (1, 2, 3.0, 1_500_000_000)),
        ("userId,movieId,rating,timestamp", "1,2,3,1500000000", (1, 2, 3.0, 1_500_000_000)),
        ("reviewerID,asin,overall,unixReviewTime", "1,2,3,1500000000", (1, 2, 3.0, 1_500_000_000)),
        ("user_id,parent_asin,rating,timestamp", "1,2,3,1500000000000", (1, 2, 3.0, 1_500_000_000)),
        ("timestamp,visitorid,event,itemid", "1500000000000,1,view,2", (1, 2, "view", 1_500_000_000)),
        ("user_id,track_id,created_at", "1,2,2017-07-14T02:40:00Z", (1, 2, None, 1_500_000_000)),
        ("event_time,event_type,product_id,user_id", "2017-07-14 02:40:00 UTC,view,2,1", (1, 2, "view", 1_500_000_000)),
        ("session_id,item_id,timestamp", "1,2,1500000000", (1, 2, None, 1_500_000_000)),
        ("userID,artistID,weight,time", "1,2,3,1500000000", (1, 2, 3.0, 1_500_000_000)),
        ("user_id,item_id,last_watch_dt,total_dur", "1,2,2017-07-14,9", (1, 2, None, 1_499_990_400)),
        ("customer_id,article_id,t_dat", "1,2,2017-07-14", (1, 2, None, 1_499_990_400)),
    ],
)  # fmt: skip
def test_columns_of_other_tools_and_sets_are_known(
    header: str, row: str, wanted: tuple[int, int, float | str | None, int], tmp_path: Path
) -> None:
    path = _folder(tmp_path, {"a.csv": f"{header}\n{row}\n".encode()}) / "a.csv"
    event = read_interactions(path, ReadConfig()).interactions.row(0, named=True)
    extra = event.get("event_type", event.get("weight"))
    assert (event["user_id"], event["item_id"], extra, event["timestamp"] // 10**6) == wanted


def test_columns_that_fit_one_name_are_told_or_refused(tmp_path: Path) -> None:
    path = (
        _folder(tmp_path, {"a.csv": b"user_id,asin,parent_asin,date,timestamp\n1,2,3,2015-01-01,1500000000\n"})
        / "a.csv"
    )
    result = read_interactions(path, ReadConfig())
    assert result.interactions.select("item_id", "timestamp").row(0) == (3, 1_500_000_000_000_000)
    assert result.notes == [
        "item_id is read from column parent_asin, not from asin; read.columns.item_id=asin reads the other",
        "timestamp is read from column timestamp, not from date; read.columns.timestamp=date reads the other",
    ]
    path.write_bytes(b"User ID,user-id,item\n1,2,3\n")
    with pytest.raises(
        DataError, match=r"columns 'User ID' and 'user-id' both read as user_id; name one: read\.columns"
    ):
        read_interactions(path, ReadConfig())
    path.write_bytes(b"session_id,item\n1,3\n")
    assert read_interactions(path, ReadConfig()).notes[0] == "no column for user_id: each session_id is taken as a user"


def test_every_name_of_a_column_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    table = text[text.index("| ours | also called") :].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    named = {row[1].strip(" `"): {plain_name(name) for name in re.findall(r"`([^`]+)`", row[2])} for row in rows}
    assert {ours: set(aliases) - {plain_name(ours)} for ours, aliases in ALIASES.items()} == named


PROSE = b"# A log\n\nplease read the terms of it\nthen go on\n"


@pytest.mark.parametrize(
    "name", ["README.md", "readme", "README.movielens.gz", "sub/LICENSE-MIT", "licence.txt", "notes.rst", "paper.PDF"]
)
def test_documents_in_a_folder_are_left_out_and_told(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log", {name: PROSE, "seq.txt": b"1 2 3\n2 3 4\n"})
    result = read_interactions(folder, ReadConfig())
    assert result.interactions["user_id"].to_list() == [1, 1, 2, 2]
    assert result.notes[0] == f"1 documents left out: {name}; one named alone is read"
    assert [entry["name"] for entry in read_interactions(folder / "*.txt", ReadConfig()).sources][-1:] == ["seq.txt"]


def test_a_log_that_is_called_like_a_document_is_read(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "log", {"readme.csv": GOOD, "notice_board.csv.gz": gzip.compress(GOOD)})
    assert read_interactions(folder, ReadConfig()).counts["good"] == 4
    alone = _folder(tmp_path / "alone", {"README.md": b"1 2 3\n"})
    assert read_interactions(alone / "README.md", ReadConfig()).counts["events"] == 2
    with pytest.raises(DataError, match=r"holds no file to read but documents such as README\.md"):
        read_interactions(alone, ReadConfig())


@pytest.mark.parametrize("good", [b"user,item\n1,2\n1,3\n", GOOD])
def test_lines_that_only_look_like_sequences_are_refused_among_files_with_columns(good: bytes, tmp_path: Path) -> None:
    """Prose looks so, too, and there may be more of it than of the log."""
    folder = _folder(tmp_path / "log", {"about.txt": PROSE * 9, "also.txt": PROSE * 9, "good.csv": good})
    with pytest.raises(DataError, match=r"about\.txt: looks like 'user item item' lines, but good\.csv has columns"):
        read_interactions(folder, ReadConfig())
    result = read_interactions(folder, ReadConfig(bad_files="skip"))
    assert [entry["name"] for entry in result.sources] == ["good.csv"]
    assert result.interactions["user_id"].to_list() == [1, 1]
    assert [note.partition(":")[0] for note in result.notes[:2]] == ["about.txt", "also.txt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": b"user,item\n1,2\n" * 99, "b.csv": GOOD, "c.csv": GOOD},
            r"a\.csv: holds neither times nor positions, but b\.csv holds times, as do 2 of 3 files",
        ),
        ({"a.csv": b"user,item\n1,2\n", "b.csv": GOOD}, r"a\.csv: holds neither .* but b\.csv holds times; read"),
        ({"a.csv": b"user,item,ts\n1,2,\n", "b.csv": GOOD}, r"a\.csv: column ts is empty"),
    ],
)
def test_the_file_that_differs_is_the_one_that_is_named_and_left_out(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "log", files)
    with pytest.raises(DataError, match=message) as caught:
        read_interactions(folder, ReadConfig())
    assert str(caught.value).endswith("or set read.bad_files=skip to leave such files out")
    result = read_interactions(folder, ReadConfig(bad_files="skip"))
    assert result.order == "time"
    assert [entry["name"] for entry in result.sources] == [name for name in files if name != "a.csv"]
    assert result.notes[0].startswith("a.csv: left out: ")


@pytest.mark.parametrize("settings", [{}, {"order": "time"}, {"time_unit": "s"}])
def test_a_file_of_ragged_lines_is_told_as_such(tmp_path: Path, settings: dict[str, Any]) -> None:
    head = b"user,item,rating,ts\n"
    files = {f"p{n}.csv": head + b"1,2,3,1500000000\n" for n in range(3)} | {"p3.csv": head + b"1,2\n" * 100}
    _folder(tmp_path, files)
    wanted = r"p3\.csv:2: missing fields: 2 of 4; none of its 100 data lines can be used; .*read\.separator"
    with pytest.raises(DataError, match=wanted):
        read_interactions(tmp_path, ReadConfig(**settings))
    (tmp_path / "p3.csv").write_bytes(head + b"1,2\n1,2,3,\n")
    with pytest.raises(DataError, match=r"column ts is empty; name the time column"):
        read_interactions(tmp_path, ReadConfig(**settings))

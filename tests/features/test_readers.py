"""What single formats and settings mean; what all readers have in common stands in test_reader_contract.py."""

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from recsys.errors import DataError
from recsys.features.readers import ReadResult, open_interactions, read_interactions
from recsys.features.schema import ReadConfig


def _read(path: Path, **config: Any) -> ReadResult:
    return read_interactions(path, ReadConfig(**({"max_rejected_share": 1.0} | config)))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_parquet_rows_follow_the_same_rules(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "uid": [1, None, 3, 4, 5, 6],
            "iid": pl.Series([10, 20, 2**63, 40, 50, 60], dtype=pl.UInt64),
            "ts": [1500000000, 1500000001, 1500000002, None, -7, 1500000005],
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    result = _read(tmp_path / "a.parquet")
    assert result.interactions.select("line", "user_id", "item_id").rows() == [(1, 1, 10), (6, 6, 60)]
    assert result.rejected.select("file", "line", "reason").rows() == [
        ("a.parquet", 2, "user_id is empty"),
        ("a.parquet", 3, "item_id is beyond int64"),
        ("a.parquet", 4, "timestamp is empty"),
        ("a.parquet", 5, "timestamp is negative"),
    ]
    assert result.rejected["text"][3] == "uid=5, iid=50, ts=-7"
    assert result.counts == {"lines": 6, "good": 2, "rejected": 4, "events": 2, "clamped": 0}


def test_parquet_keeps_the_type_of_ids(tmp_path: Path) -> None:
    pl.DataFrame({"user": ["7", "07"], "item": [1.0, 2.0]}).write_parquet(tmp_path / "a.parquet")
    result = _read(tmp_path / "a.parquet")
    assert result.interactions.select("user_id", "item_id").rows() == [("7", 1), ("07", 2)]
    pl.DataFrame({"user": ["7"], "item": [1.5]}).write_parquet(tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet").rejected["reason"].to_list() == ["item_id is no integer"]
    pl.DataFrame({"user": ["7"], "item": [[1]]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column item holds List"):
        _read(tmp_path / "a.parquet")


def test_parquet_ids_of_other_writers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    users = pl.Series([Decimal(7), None, Decimal(10**20), Decimal(9)], dtype=pl.Decimal(38, 0))
    items = pl.Series([b"caf\xc3\xa9", b"x", b"x", b"caf\xe9"])
    pl.DataFrame({"user": users, "item": items, "ts": [1500000000] * 4}).write_parquet(path)
    result = _read(path)
    assert result.interactions.select("line", "user_id", "item_id").rows() == [(1, 7, "café")]
    assert (result.user_kind, result.item_kind) == ("int", "str")
    assert result.rejected.select("line", "reason", "text").rows() == [
        (2, "user_id is empty", "user=None, item=x, ts=1500000000"),
        (3, "user_id is beyond int64", "user=100000000000000000000, item=x, ts=1500000000"),
        (4, "bytes that are not UTF-8", "user=9, item=b'caf\\xe9', ts=1500000000"),
    ]
    pl.DataFrame({"user": [b"7"], "item": [b"8"]}).write_parquet(path)
    assert _read(path).interactions.select("user_id", "item_id").rows() == [("7", "8")]
    fraction = pl.Series([Decimal("7.5")], dtype=pl.Decimal(38, 1))
    pl.DataFrame({"user": fraction, "item": [8]}).write_parquet(path)
    with pytest.raises(DataError, match=r"column user holds Decimal.*wanted integers or strings"):
        _read(path)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (pl.Series([True, False]), r"column ts holds Boolean; wanted numbers, texts, dates or datetimes"),
        (pl.Series([[1], [2]]), "column ts holds List"),
        (pl.Series([None, None], dtype=pl.Int64), "column ts is empty; name the time column"),
        (pl.Series([None, None], dtype=pl.Datetime), "column ts is empty; name the time column"),
    ],
)
def test_a_parquet_column_without_times_is_refused(times: pl.Series, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": [1, 2], "item": [3, 4], "ts": times}).write_parquet(path)
    with pytest.raises(DataError, match=message) as caught:
        _read(path)
    assert "\n" not in str(caught.value)
    assert _read(path, order="rows").counts["good"] == 2


@pytest.mark.parametrize("letter", ["\0", "\x01", "\x1b", "\x7f", "\x85"])
def test_ids_with_a_control_character_are_set_aside(letter: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", f'user,item\nu7,1\nu7{letter}x,1\nu8,2\nu9,2{letter}2\n"u\t7",3\n')
    result = _read(path)
    assert result.interactions.select("line", "user_id", "item_id").rows() == [
        (2, "u7", 1),
        (4, "u8", 2),
        (6, "u\t7", 3),
    ]
    assert result.rejected.select("line", "reason").rows() == [
        (3, "user_id holds a control character"),
        (5, "item_id holds a control character"),
    ]
    pl.DataFrame({"user": ["u7", f"u7{letter}"], "item": [1, 1]}).write_parquet(tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet").rejected.select("line", "reason").rows() == [
        (2, "user_id holds a control character")
    ]


def test_a_tab_may_stand_between_a_user_and_blank_separated_items(tmp_path: Path) -> None:
    path = _write(tmp_path / "s.tsv", "1\t2 3 4\n5\t6\n")
    result = _read(path)
    assert result.interactions.select("line", "user_id", "item_id").rows() == [
        (1, 1, 2),
        (1, 1, 3),
        (1, 1, 4),
        (2, 5, 6),
    ]
    headed = _write(tmp_path / "h.tsv", "user\titem of the shop\n1\t2 3\n")
    assert _read(headed, columns={"item_id": "item of the shop"}).interactions["item_id"].to_list() == ["2 3"]
    told = _read(path, names=("user_id", "item_id"))
    assert told.interactions["item_id"].to_list() == ["2 3 4", "6"]


def test_sequences_give_one_event_an_item_in_the_order_of_the_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "beauty.txt", "1 5 6 5\n2 7\n\n3\n4  8\t9 \n1 4\n")
    result = _read(path)
    assert result.interactions.select("line", "user_id", "item_id").rows() == [
        (1, 1, 5), (1, 1, 6), (1, 1, 5), (2, 2, 7), (5, 4, 8), (5, 4, 9), (6, 1, 4),
    ]  # fmt: skip
    assert result.rejected.rows() == [
        ("beauty.txt", 3, "empty line", ""),
        ("beauty.txt", 4, "missing fields: a user without items", "3"),
    ]
    assert result.counts == {"lines": 6, "good": 4, "rejected": 2, "events": 7, "clamped": 0}
    assert result.order == "rows"


def test_a_bad_item_sets_its_whole_sequence_aside(tmp_path: Path) -> None:
    path = _write(tmp_path / "s.txt", "1 5 6\n2 9223372036854775808 9223372036854775809\n3 7\n")
    result = _read(path)
    assert result.interactions["line"].to_list() == [1, 1, 3]
    assert result.rejected.select("line", "reason").rows() == [(2, "item_id is beyond int64")]
    assert result.counts["lines"] == 3


def test_quoted_line_ends_keep_line_numbers_right(tmp_path: Path) -> None:
    text = 'user,item,ts\n1,"a\nb",1500000000\n2,c,1500000001\n"3\n\n3","d ""e"", f",1500000002\n4,g\n5,h,1500000003\n'
    result = _read(_write(tmp_path / "a.csv", text))
    assert result.interactions.select("line", "user_id", "item_id").rows() == [
        (2, "1", "a\nb"), (4, "2", "c"), (5, "3\n\n3", 'd "e", f'), (9, "5", "h"),
    ]  # fmt: skip
    assert result.rejected.rows() == [("a.csv", 8, "missing fields: 2 of 3", "4,g")]
    assert result.counts["lines"] == 5


def test_a_quote_closed_by_accident_costs_one_line(tmp_path: Path) -> None:
    result = _read(_write(tmp_path / "a.csv", 'user,item,ts\n"1,a,1500000000\n2,b,1500000001"\n3,c,1500000002\n'))
    assert result.rejected.select("line", "reason").rows() == [
        (2, "quotes that do not close a field"),
        (3, "timestamp is no time"),
    ]
    assert result.interactions["line"].to_list() == [4]


def test_an_unclosed_quote_costs_one_line(tmp_path: Path) -> None:
    rows = [f"{n},x,150000{n:04d}" for n in range(3000)]
    rows[10] = '10,"x,1500000010'
    result = _read(_write(tmp_path / "a.csv", "\n".join(["user,item,ts", *rows])))
    assert result.rejected.select("line", "reason").rows() == [(12, "quotes that do not close a field")]
    assert result.counts["good"] == 2999


@pytest.mark.parametrize(
    ("cells", "kept", "kind"),
    [
        (["1", "-2", "30"], [1, -2, 30], "int"),
        (["1", "2", "x3"], ["1", "2", "x3"], "str"),
        (["1", "02"], ["1", "02"], "str"),
        (["1", "+2"], ["1", "+2"], "str"),
        (["1.0", "2.0"], ["1.0", "2.0"], "str"),
        (["9223372036854775808"], ["9223372036854775808"], "str"),
        (["9223372036854775808", "a"], ["9223372036854775808", "a"], "str"),
        (["ä", "日本"], ["ä", "日本"], "str"),
    ],
)
def test_raw_ids_are_kept(cells: list[str], kept: list[Any], kind: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "\n".join(["user,item", *(f"u{n},{cell}" for n, cell in enumerate(cells))]))
    result = _read(path)
    assert result.interactions["item_id"].to_list() == kept
    assert (result.user_kind, result.item_kind) == ("str", kind)


def test_the_kind_of_ids_can_be_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item\n1,2\n1,x\n1,3\n")
    result = _read(path, user_ids="str", item_ids="int")
    assert result.interactions.select("user_id", "item_id").rows() == [("1", 2), ("1", 3)]
    assert result.rejected.select("line", "reason").rows() == [(3, "item_id is no integer")]


def test_json_numbers_and_texts_differ_and_a_mixture_becomes_texts(tmp_path: Path) -> None:
    rows = [{"user": "5", "item": 1}, {"user": "6", "item": "b"}]
    path = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    result = _read(path)
    assert result.interactions.select("user_id", "item_id").rows() == [("5", "1"), ("6", "b")]


def test_half_a_surrogate_is_no_text(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"user": "\\ud800", "item": 1}\n{"user": "\\ud83d\\ude00", "item": 1}\n')
    result = _read(path)
    assert result.interactions["user_id"].to_list() == ["\U0001f600"]
    assert result.rejected.select("line", "reason").rows() == [(1, "text that is no valid Unicode")]


@pytest.mark.parametrize(
    "header",
    [
        "user_id:token,item_id:token,timestamp:float",
        "userID,itemID,timestamp",
        "User,Item,DateTime",
        "user_idx,item_idx,ts",
        "uid,iid,date",
        "query_id,item_id,timestamp",
        "userId,movieId,time",
    ],
)
def test_columns_of_other_tools_are_known(header: str, tmp_path: Path) -> None:
    result = _read(_write(tmp_path / "a.csv", f"{header}\n1,2,1500000000\n"))
    assert result.interactions.select("user_id", "item_id", "timestamp").rows() == [(1, 2, 1500000000000000)]


def test_a_mapping_goes_before_aliases(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item,parent,when,rating\n1,2,3,2015-01-01,4\n")
    result = _read(path, columns={"item_id": "parent", "timestamp": "when"})
    assert result.interactions.select("user_id", "item_id", "timestamp", "weight").rows() == [
        (1, 3, 1420070400000000, 4.0)
    ]


def test_optional_columns_are_carried(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item,ts,event,session_id,rating\n1,2,1500000000,view,s1,\n")
    row = _read(path).interactions.row(0, named=True)
    assert (row["event_type"], row["session_id"], row["weight"]) == ("view", "s1", None)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("user,item,position\n1,2,1\n1,3,0\n", "position"),
        ("user,item\n1,2\n1,3\n", "rows"),
        ("user,item,ts\n1,2,0\n1,3,1\n", "position"),
        ("user,item,position,ts\n1,2,1,1500000000\n1,3,0,1500000000\n", "time"),
    ],
)
def test_the_order_kind_is_told_by_the_columns(text: str, order: str, tmp_path: Path) -> None:
    result = _read(_write(tmp_path / "a.csv", text))
    assert result.order == order
    assert (len(result.notes) == 1) == (order != "time")


def test_bad_positions_are_set_aside(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item,position\n1,2,0\n1,2,x\n1,2,-1\n1,2,\n1,2,1\n")
    result = _read(path)
    assert result.interactions["position"].to_list() == [0, 1]
    assert result.rejected.select("line", "reason").rows() == [
        (3, "position is no integer"),
        (4, "position is negative"),
        (5, "position is no integer"),
    ]


def test_a_source_without_header_takes_the_names_it_is_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    result = _read(path, names=("user_id", "item_id", "rating", "timestamp"))
    assert result.interactions.select("line", "user_id", "timestamp").rows()[0] == (1, 196, 881250949000000)
    headed = _write(tmp_path / "h.csv", "a,b\n1,2\n")
    assert _read(headed, names=("user_id", "item_id"), header=True).counts["lines"] == 1


def test_future_times_are_clamped_and_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item,ts\n1,2,1500000000\n1,3,4000000000\n")
    result = _read(path)
    assert result.interactions.select("timestamp", "is_clamped").rows() == [
        (1500000000000000, False),
        (1500000000000000, True),
    ]
    assert result.counts["clamped"] == 1
    assert "a.csv:3" in result.notes[0]
    assert _read(path, latest_time="2100-01-01T00:00:00Z").counts["clamped"] == 0


def test_undecodable_lines_are_set_aside_and_the_rest_is_kept(tmp_path: Path) -> None:
    rows = [b"user,item"] + [b"1,caf\xc3\xa9"] * 50
    rows[7] = b"1,caf\xe9"
    rows[9] = b'1,"caf\xe9"'
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    result = _read(tmp_path / "a.csv", max_rejected_share=0.05)
    assert result.rejected.select("line", "reason").rows() == [(n, "bytes that are not UTF-8") for n in (8, 10)]
    assert result.rejected["text"][0] == "1,caf\\xe9"
    assert result.interactions["item_id"].to_list() == ["café"] * 48


def test_other_encodings_are_read_when_told(tmp_path: Path) -> None:
    text = "user,item\n1,café\n2,naïve\n"
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        (tmp_path / "a.csv").write_bytes(text.encode(encoding))
        assert _read(tmp_path / "a.csv", encoding=encoding).interactions["item_id"].to_list() == ["café", "naïve"]
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8-sig"))
    assert _read(tmp_path / "a.csv").counts["good"] == 2


LATIN = "user,item\n" + "1,café\n" * 9


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "is empty; wanted at least one line"),
        ("a.csv", b"\n\n \n", "is empty"),
        ("a.csv", b"user,item\n", "has a header and no data"),
        ("a.jsonl", b'[{"user": 1}]', "holds a JSON array; wanted one JSON object a line"),
        ("a.jsonl", b'{"user": 1, "itm": 2}\n', r"no column for item_id; found user, itm; the nearest is 'itm'"),
        ("a.jsonl", b'{"user": 1,\n', "none of the first 1 lines is a JSON object"),
        ("a.csv", b"usr,item,ts\n1,2,3\n", r"found usr, item, ts; the nearest is 'usr'; .* read\.columns\.user_id=usr"),
        ("a.csv", b"1,2,1500000000\n", r"line 1 names no known column.*read\.names="),
        ("a.csv", b"user,item,user\n1,2,3\n", "column 'user' occurs twice"),
        ("a.csv.gz", gzip.compress(b"user,item\n1,2\n" * 99, mtime=0)[:-9], "gzip file is cut short after .* copy it"),
        ("a.csv.gz", gzip.compress(b"user,item\n1,2\n", mtime=0)[:-8] + b"12345678", "gzip file is damaged .*CRC"),
        ("a.csv", LATIN.encode("latin-1"), r"9 of 10 lines are not UTF-8, the first is line 2; .*encoding=latin-1"),
        ("a.csv", LATIN.encode("utf-16"), r"looks like UTF-16; set read\.encoding=utf-16"),
        ("a.csv", LATIN.encode("utf-16-le"), r"looks like UTF-16; set read\.encoding=utf-16"),
        ("a.csv", random.Random(1).randbytes(5000), r"looks binary: \d+ of its first 4096 bytes are control bytes"),
        ("a.csv", b"\0\0\0\1user,item\n" + bytes(4000), "looks binary"),
        ("a.csv", b"user,item,ts\n1,2,\n1,3,\n", r"column ts is empty; .*columns\.timestamp=NAME, or .*order=rows"),
        ("a.parquet", b"PAR1 nothing of the kind", "Parquet file is damaged or cut short"),
        ("a.txt", b"word\nother\n", "cannot tell the format from line 1, 'word'"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used_is_one_clear_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path / name, max_rejected_share=0.05)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_parquet_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": range(1000), "item": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="Parquet file is damaged or cut short") as caught:
        _read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.csv", "no such file; name a .* file, a folder or a glob"),
        (".", "holds no file to read but hidden ones such as _SUCCESS"),
        ("*.csv", r"\*\.csv: no file matches"),
    ],
)
def test_a_path_without_files_is_named(name: str, message: str, tmp_path: Path) -> None:
    _write(tmp_path / "_SUCCESS", "")
    with pytest.raises(DataError, match=message):
        _read(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"order": "time"}, "no column for timestamp"),
        ({"order": "position"}, "no column for position"),
        ({"columns": {"timestamp": "whn"}}, r"'whn' \(read\.columns\.timestamp\); found .*; the nearest is 'when'"),
        ({"encoding": "utf-17"}, "encoding='utf-17': unknown"),
        ({"columns": {"usr": "user"}}, r"columns\.usr: no such column"),
        ({"max_rejected_share": 1.5}, r"max_rejected_share=1\.5"),
        ({"separator": ""}, "separator=''"),
        ({"latest_time": "soon", "columns": {"timestamp": "when"}}, r"read\.latest_time='soon': wanted an ISO time"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_hold_is_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item,when\n1,2,2015-01-01\n")
    with pytest.raises(ValueError, match=message):
        _read(path, **config)


def test_a_near_miss_of_the_time_column_is_told(tmp_path: Path) -> None:
    result = _read(_write(tmp_path / "a.csv", "user,item,timestmp\n1,2,1500000000\n"))
    assert result.order == "rows"
    assert "read.columns.timestamp=timestmp" in result.notes[0]


@pytest.mark.parametrize("rows", [1, 100])
def test_blank_lines_at_the_end_are_no_data_lines(rows: int, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "user,item\n1,2\n\n3,4\n\n \n\t\n\n")
    chunks = list(open_interactions(path, ReadConfig(max_rejected_share=1.0)).chunks(rows=rows))
    assert sum(chunk.num_lines for chunk in chunks) == 3
    assert [row for chunk in chunks for row in chunk.rejected.rows()] == [("a.csv", 3, "empty line", "")]


def test_names_in_a_message_are_one_short_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", ",".join(["\x00\x1b" * 200, *(f"c{n}" for n in range(500))]) + "\n1,2\n")
    for config in ({}, {"header": True}, {"header": True, "columns": {"user_id": "x"}}):
        with pytest.raises(DataError, match=r"and 481 more") as caught:
            _read(path, **config)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700 + len(str(path))


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt"])
def test_a_json_array_is_no_csv(name: str, tmp_path: Path) -> None:
    for text in ('[{"user": 1, "item": 2},\n {"user": 1, "item": 3}]\n', '[\n  {"user": 1, "item": 2}\n]\n'):
        with pytest.raises(DataError, match="holds a JSON array; wanted one JSON object a line"):
            _read(_write(tmp_path / name, text))


@pytest.mark.parametrize("num_bad", [10, 11])
def test_undecodable_lines_stop_a_file_just_above_the_share(num_bad: int, tmp_path: Path) -> None:
    rows = [b"user,item"] + [b"1,caf\xc3\xa9"] * (199 - num_bad) + [b"1,caf\xe9"] * num_bad
    (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
    config = ReadConfig(max_rejected_share=0.05)
    if num_bad == 10:
        assert read_interactions(tmp_path / "a.csv", config).rejected.height == 10
        return
    with pytest.raises(DataError, match=r"11 of 200 lines are not UTF-8"):
        read_interactions(tmp_path / "a.csv", config)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_a_tar_archive_is_named_as_one(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        data = b"user,item\n1,2\n" * 3000
        member = tarfile.TarInfo("log.csv")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    (tmp_path / "a.csv").write_bytes(pack(buffer.getvalue()))
    with pytest.raises(DataError, match="is a tar archive; .* unpack it first"):
        _read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user,item,ts,event,session_id\n1,2,1500000000,,\n1,3,1500000001, view , s \n"),
        ("a.tsv", 'user\titem\tts\tevent\tsession_id\n1\t2\t1500000000\t""\t""\n1\t3\t1500000001\tview\ts\n'),
        ("a.dat", "user::item::ts::event::session_id\n1::2::1500000000::::\n1::3::1500000001::view::s\n"),
        (
            "a.jsonl",
            '{"user": 1, "item": 2, "ts": 1500000000, "event": "", "session_id": null}\n'
            '{"user": 1, "item": 3, "ts": 1500000001, "event": "view", "session_id": "s"}\n',
        ),
    ],
)
def test_an_empty_type_or_session_is_null(tmp_path: Path, name: str, text: str) -> None:
    path = _write(tmp_path / name, text)
    rows = _read(path).interactions.select("event_type", "session_id").rows()
    assert rows == [(None, None), ("view", "s")]
    pl.DataFrame({"user": [1, 1], "item": [2, 3], "event": ["", "view"]}).write_parquet(tmp_path / "a.parquet")
    assert _read(tmp_path / "a.parquet").interactions["event_type"].to_list() == [None, "view"]

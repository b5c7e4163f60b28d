"""One list of checks for every reader: good + rejected = lines, each bad row at its place, nothing else lost."""

import dataclasses
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.readers import InteractionSource, open_interactions
from recsys.features.schema import Format, ReadConfig

Event = tuple[int, int, int]
Bad = dict[str, tuple[Any, str]]  # what is planted, and the reason it must be given
GOOD_TIME = 1_500_000_000
EVERYTHING = ReadConfig(max_rejected_share=1.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A format: how it writes good rows, and what can be wrong with one."""

    format: Format
    file: str
    good: Callable[[Event], Any]
    bad: Bad
    header: tuple[str, ...] = ()
    write: Callable[[list[Any]], bytes] = lambda rows: ("\n".join(rows) + "\n").encode()
    text: Callable[[Any], str] = str
    has_times: bool = True


SEPARATED_BAD: Bad = {
    "missing": ("1{s}2", "missing fields: 2 of 3"),
    "extra": ("1{s}2{s}1500000000{s}9", "extra fields: 4 of 3"),
    "no user": ("{s}2{s}1500000000", "user_id is empty"),
    "blank item": ("1{s}  {s}1500000000", "item_id is empty"),
    "no time": ("1{s}2{s}", "timestamp is empty"),
    "words": ("1{s}2{s}noon", "timestamp is no time"),
    "negative": ("1{s}2{s}-1500000000", "timestamp is negative"),
    "milliseconds": ("1{s}2{s}1500000000000", "timestamp is in another unit than the source's (s)"),
    "beyond": ("1{s}9223372036854775808{s}1500000000", "item_id is beyond int64"),
    "empty": ("", "empty line"),
}
QUOTED_BAD: Bad = {
    "unclosed": ('"1,2,1500000000', "quotes that do not close a field"),
    "after": ('"1"x,2,1500000000', "quotes that do not close a field"),
    "quoted extra": ('"1","2","1500000000","9"', "extra fields: 4 of 3"),
}
JSON_BAD: Bad = {
    "missing": ('{"user": 1, "time": 1500000000}', "missing fields: item_id"),
    "broken": ('{"user": 1, "item": 2, "time": 15000', "no valid JSON"),
    "list": ("[1, 2, 1500000000]", "no JSON object"),
    "null": ('{"user": null, "item": 2, "time": 1500000000}', "user_id is empty"),
    "float": ('{"user": 1, "item": 2.5, "time": 1500000000}', "item_id is no string or integer"),
    "bool": ('{"user": true, "item": 2, "time": 1500000000}', "user_id is no string or integer"),
    "words": ('{"user": 1, "item": 2, "time": "noon"}', "timestamp is no time"),
    "negative": ('{"user": 1, "item": 2, "time": -1500000000}', "timestamp is negative"),
    "beyond": ('{"user": 1, "item": 9223372036854775808, "time": 1500000000}', "item_id is beyond int64"),
    "empty": ("", "empty line"),
}
MOVIELENS_BAD: Bad = {
    "missing": ("1::2::5", "missing fields: 3 of 4"),
    "extra": ("1::2::5::1500000000::", "extra fields: 5 of 4"),
    "no item": ("1::::5::1500000000", "item_id is empty"),
    "no weight": ("1::2::five::1500000000", "weight is no number"),
    "negative": ("1::2::5::-1", "timestamp is negative"),
}
SEQUENCE_BAD: Bad = {
    "alone": ("7", "missing fields: a user without items"),
    "beyond": ("7 8 9223372036854775808 9", "item_id is beyond int64"),
    "empty": ("", "empty line"),
}
PARQUET_BAD: Bad = {
    "no user": ((None, 2, GOOD_TIME), "user_id is empty"),
    "beyond": ((1, 2**63, GOOD_TIME), "item_id is beyond int64"),
    "no time": ((1, 2, None), "timestamp is empty"),
    "negative": ((1, 2, -7), "timestamp is negative"),
}


def _parquet(rows: list[Any]) -> bytes:
    users, items, times = zip(*rows, strict=True)
    columns = [pl.Series("uid", users, pl.Int64), pl.Series("iid", items, pl.UInt64), pl.Series("ts", times, pl.Int64)]
    target = io.BytesIO()
    pl.DataFrame(columns).write_parquet(target, row_group_size=7)
    return target.getvalue()


def _separated(format: Format, file: str, separator: str, header: str = "user_id{s}item_id{s}timestamp") -> Case:
    bad = {name: (text.replace("{s}", separator), reason) for name, (text, reason) in SEPARATED_BAD.items()}
    named = (header.replace("{s}", separator),)
    return Case(format, file, lambda event: separator.join(map(str, event)), bad, named)


def _json(event: Event) -> str:
    return json.dumps({"user": event[0], "item": event[1], "time": event[2]})


def _compact(event: Event) -> str:
    # A nested value no pattern holds: this line goes through the json module.
    other: Any = {"a": [1]} if event[1] % 3 == 0 else 'a "quoted" word'
    row = {"other": other, "time": event[2], "item": event[1], "user": event[0]}
    return json.dumps(row, separators=(",", ":"))


CASES = {
    "csv": _separated("csv", "a.csv", ","),
    "semicolons": _separated("csv", "a.csv", ";"),
    "bars": _separated("csv", "a.txt", "|"),
    "tsv": _separated("tsv", "a.tsv", "\t"),
    "inter": _separated("tsv", "a.inter", "\t", "user_id:token{s}item_id:token{s}timestamp:float"),
    "quoted": dataclasses.replace(
        _separated("csv", "a.csv", ","),
        good=lambda event: f'"{event[0]}",{event[1]},"{event[2]}"',
        bad=_separated("csv", "a.csv", ",").bad | QUOTED_BAD,
    ),
    "jsonl": Case("jsonl", "a.jsonl", _json, JSON_BAD),
    "compact jsonl": Case("jsonl", "a.ndjson", _compact, JSON_BAD),
    "movielens": Case("movielens", "a.dat", lambda e: f"{e[0]}::{e[1]}::4.5::{e[2]}", MOVIELENS_BAD),
    "headed movielens": Case(
        "movielens",
        "a.dat",
        lambda e: f"{e[0]}::{e[1]}::4.5::{e[2]}",
        MOVIELENS_BAD,
        ("UserID::MovieID::Rating::Timestamp",),
    ),
    "sequences": Case("sequences", "a.txt", lambda e: f"{e[0]} {e[1]}", SEQUENCE_BAD, has_times=False),
    "parquet": Case(
        "parquet",
        "a.parquet",
        lambda event: event,
        PARQUET_BAD,
        write=_parquet,
        text=lambda row: ", ".join(f"{name}={value}" for name, value in zip(("uid", "iid", "ts"), row, strict=True)),
    ),
}
PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": ("", lambda data: data),
    "gzip": (".gz", lambda data: gzip.compress(data, 1)),
    "zstd": (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
}


def test_every_format_has_a_case() -> None:
    assert {case.format for case in CASES.values()} == set(get_args(Format)) - {"auto"}


@dataclasses.dataclass(frozen=True)
class Planted:
    """A file's bytes, and what must be read from it."""

    data: bytes
    events: list[tuple[int, int, int, int]]
    rejected: list[tuple[int, str, str]]


def _plant(case: Case, plan: list[int]) -> Planted:
    """A file: a number from 0 plants a good row, a negative one a bad row."""
    kinds = list(case.bad.values())
    rows: list[Any] = list(case.header)
    events, rejected, line = [], [], len(rows) + 1
    for number in [5, *plan, 6]:  # a good row stands first and last
        if number < 0:
            row, reason = kinds[-number % len(kinds)]
            rejected.append((line, reason, case.text(row)))
        else:
            event = (number % 7 + 1, number, GOOD_TIME + number % 1000)
            events.append((line, *event))
            row = case.good(event)
        rows.append(row)
        line += 1 + (row.count("\n") if isinstance(row, str) else 0)
    return Planted(case.write(rows), events, rejected)


def _check(source: InteractionSource, files: dict[str, Planted], rows: int, *, has_times: bool) -> None:
    chunks = list(source.chunks(rows=rows))
    assert all(chunk.num_good + chunk.rejected.height == chunk.num_lines for chunk in chunks)
    found = pl.concat([chunk.interactions for chunk in chunks])
    rejected = pl.concat([chunk.rejected for chunk in chunks])
    names = [file.name for file in source.files]
    assert names == sorted(files)
    wanted = [(number, *event) for number, name in enumerate(names) for event in files[name].events]
    if has_times:
        kept = found.select("file", "line", "user_id", "item_id", pl.col("timestamp") // 10**6)
        assert kept.rows() == wanted
    else:
        assert found.select("file", "line", "user_id", "item_id").rows() == [event[:4] for event in wanted]
    assert rejected.rows() == [(name, *bad) for name in names for bad in files[name].rejected]
    assert sum(chunk.num_lines for chunk in chunks) == sum(len(f.events) + len(f.rejected) for f in files.values())


@pytest.mark.parametrize("layout", ["file", "folder", "glob"])
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("name", CASES)
def test_every_bad_row_is_named_whatever_the_format_packing_layout_and_chunk(
    name: str, packer: str, layout: str, tmp_path: Path
) -> None:
    case, (suffix, pack) = CASES[name], PACKERS[packer]
    plan = [value for kind in range(1, len(case.bad) + 1) for value in (10 * kind, -kind, 10 * kind + 1)]
    places = {
        "file": [case.file],
        "folder": [f"1/{case.file}", case.file],
        "glob": [f"1/{case.file}", f"2/{case.file}"],
    }
    files = {f"{place}{suffix}": _plant(case, plan[n:]) for n, place in enumerate(places[layout])}
    for place, planted in files.items():
        (tmp_path / "log" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "log" / place).write_bytes(pack(planted.data))
    (tmp_path / "log" / "_SUCCESS").write_bytes(b"")
    paths = {"file": Path("log", *files), "folder": Path("log"), "glob": Path("log", "*", f"{case.file}{suffix}")}
    source = open_interactions(tmp_path / paths[layout], EVERYTHING)
    for rows in (2, 1_000_000):
        _check(source, files, rows, has_times=case.has_times)
    assert (source.order, source.user_kind, source.item_kind) == ("time" if case.has_times else "rows", "int", "int")
    num_events = sum(len(planted.events) + len(planted.rejected) for planted in files.values())
    assert 0.5 * num_events < source.num_rows_estimate < 2 * num_events + 10


@settings(max_examples=20, deadline=None)
@given(
    plan=st.lists(st.integers(0, 2**40) | st.integers(0, 30).map(lambda n: -n - 1), min_size=1, max_size=40),
    rows=st.integers(1, 50),
    is_dos=st.booleans(),
)
@pytest.mark.parametrize("name", [name for name in CASES if name != "parquet"])
def test_every_line_is_either_kept_or_set_aside_with_its_reason(
    name: str, plan: list[int], rows: int, is_dos: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = CASES[name]
    # Most rows decide the unit of the times: the good ones are more, and there are no milliseconds.
    plan = [*plan, *range(100, 101 + len(plan))]
    case = dataclasses.replace(case, bad={kind: bad for kind, bad in case.bad.items() if kind != "milliseconds"})
    planted = _plant(case, plan)
    path = tmp_path_factory.mktemp("read") / case.file
    path.write_bytes(planted.data.replace(b"\n", b"\r\n") if is_dos else planted.data)
    _check(open_interactions(path, EVERYTHING), {path.name: planted}, rows, has_times=case.has_times)

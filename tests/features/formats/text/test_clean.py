"""The quick ways must say what the slow and exact ways say, of any text at all."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.formats.raw import RawTable
from recsys.features.formats.source import SourceFile
from recsys.features.formats.text.blocks import Block
from recsys.features.formats.text.clean import read_clean
from recsys.features.formats.text.json_lines import JsonLinesParser, read_line_by_line
from recsys.features.formats.text.json_shape import shape_of
from recsys.features.formats.text.lines import usable_lines
from recsys.features.formats.text.separated import SeparatedParser
from recsys.features.readers import open_interactions, read_interactions
from recsys.features.schema import ReadConfig

FILE = SourceFile("a", Path("a"), 0)
FIELD = st.text('a1" \xa0\t', max_size=3) | st.from_regex(r'\A"([^"]|"")*"\Z').map(lambda text: text.replace("\r", ""))
PIECE = st.sampled_from(['"', ",", "\n", "1", "a", " ", '","', '"\n"', "\t", "é", '""', "1,2\n", '"a\nb",2\n'])


def _rows(table: RawTable) -> list[tuple[Any, ...]]:
    numbers = pl.Series(range(table.rows.height), dtype=pl.Int64)
    return [(*row, text) for row, text in zip(table.rows.rows(), table.texts(numbers).to_list(), strict=True)]


def _check_separated(text: str, separator: str, width: int) -> bool:
    """Whether the text is clean; then both ways agree on it."""
    names = [f"c{number}" for number in range(width)]
    block = Block((text + "\n").encode(), 5)
    clean = read_clean(block, separator, names, names)
    if clean is None:
        return False
    table, used = clean
    head = Block((separator.join(names) + "\n").encode(), 1)
    parser = SeparatedParser(FILE, head, separator, ReadConfig(header=True))
    exact, exact_used = parser.read_line_by_line(block.up_to(used))
    assert exact_used == used
    assert _rows(table) == _rows(exact)
    assert exact.rejected.is_empty()
    return True


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECE, max_size=30).map("".join), st.integers(2, 3), st.sampled_from([",", "\t"]))
def test_clean_blocks_hold_what_the_csv_module_reads(text: str, width: int, separator: str) -> None:
    _check_separated(text.replace(",", separator), separator, width)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=6))
def test_quoted_records_mean_the_same_both_ways(records: list[list[str]]) -> None:
    _check_separated("\n".join(",".join(record) for record in records), ",", 3)


@pytest.mark.parametrize(
    ("text", "separator", "is_clean"),
    [
        ("1,2,3\n4,5,6", ",", True),
        ('"1","2,2","3\n3"\n4,"5 ""x""",6', ",", True),
        ("1::2::3\n4::5::", "::", True),
        ("1,2\n1,2,3,4", ",", False),
        ("1,2,3,4\n1,2", ",", False),
        ('"1"x,2,3', ",", False),
        ('1,2,"3', ",", False),
        ("1,2,3\n\n4,5,6", ",", False),
        ("\t\t", "\t", False),
        ("1::2::\x1f", "::", False),
        ("1,2,3\n" + '"' + "\n" * 1001 + '",2,3', ",", False),
    ],
)
def test_what_is_clean_is_told_apart(text: str, separator: str, is_clean: bool) -> None:
    assert _check_separated(text, separator, 3) == is_clean


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECE, max_size=40).map("".join), st.integers(1, 6))
def test_the_size_of_the_blocks_never_changes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, text: str, rows: int
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "a.csv"
    path.write_text(f"user,item\n0,x\n{text}\n", encoding="utf-8")
    config = ReadConfig(max_rejected_share=1.0, user_ids="str")
    whole = read_interactions(path, config)
    chunks = list(open_interactions(path, config).chunks(rows=rows))
    assert pl.concat([chunk.interactions for chunk in chunks]).rows() == whole.interactions.rows()
    assert pl.concat([chunk.rejected for chunk in chunks]).rows() == whole.rejected.rows()


WANTED = {"user_id": "u", "item_id": "i", "timestamp": "t", "weight": "w", "event_type": "e"}
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=4)
    | st.sampled_from(["null", '"', "\\", "1", "-0", "é", "\x7f", [], {}, [1]])
)
OPTIONAL = {"w": SCALAR, "e": SCALAR, "x": SCALAR}
ROW = st.fixed_dictionaries({"u": SCALAR, "i": SCALAR, "t": SCALAR}, optional=OPTIONAL)
TOKENS = [
    *("0", "-0", "01", "1.50", "1e5", "-1.5E+3", "1.", ".5", "+1", "NaN", "null", "true", '"a"', '""', '"\\u0041"'),
    *("[]", "[1]", "{}", '"\t"', '"a\\', "1" * 18, "1" * 19, "9" * 30, "1e400", '"null"', "'a'", " 1", "1 "),
]
TOKEN = st.sampled_from(TOKENS)


def _check_json(lines: list[str]) -> None:
    block = Block(("\n".join(['{"u":1,"i":2,"t":3,"w":4,"e":"v"}', *lines]) + "\n").encode("utf-8"), 1)
    table, _ = JsonLinesParser(FILE, block).parse(block, WANTED)
    typed_ids: set[str] = set()
    exact, bad = read_line_by_line(usable_lines(block)[0], WANTED, typed_ids)
    numbers = ("t", "w")
    assert table.rows.drop(numbers).rows() == exact.drop(numbers).rows()
    for name in numbers:  # 1.50 and 1.5 are one number
        for kind in (pl.Float64, pl.Int64):
            found, wanted = (frame[name].cast(kind, strict=False) for frame in (table.rows, exact))
            assert list(map(repr, found)) == list(map(repr, wanted))
    assert table.typed_ids == typed_ids
    assert table.rejected.filter(pl.col("reason") != "empty line").rows() == bad


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, max_size=5), st.booleans())
def test_json_of_one_shape_means_what_the_json_module_says(rows: list[dict[str, Any]], is_compact: bool) -> None:
    separators = (",", ":") if is_compact else (", ", ": ")
    _check_json([json.dumps(row, separators=separators, ensure_ascii=False).replace("\n", "") for row in rows])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(TOKEN, min_size=5, max_size=5), max_size=4))
def test_odd_json_values_mean_what_the_json_module_says(rows: list[list[str]]) -> None:
    _check_json(
        ["{" + ",".join(f'"{key}":{value}' for key, value in zip("uitwe", row, strict=True)) + "}" for row in rows]
    )


def test_each_odd_json_value_in_each_place_means_what_the_json_module_says() -> None:
    for place in range(5):
        rows = [["1"] * place + [token] + ["1"] * (4 - place) for token in TOKENS]
        _check_json(["{" + ",".join(f'"{k}":{v}' for k, v in zip("uitwe", row, strict=True)) + "}" for row in rows])


@pytest.mark.parametrize(
    ("line", "has_shape"),
    [
        ('{"u": 1, "i": 2, "t": 3}', True),
        ('{"x": [], "u": "1", "i": 2, "t": 3.5e2}', True),
        ('{"u": 1, "i": 2}', False),
        ('{"u": 1, "i": 2, "t": 3, "u": 4}', False),
        ('{"u" : 1, "i" : 2, "t" : 3}', False),
        ('{"u": 1, "i": 2, "t": {"a": 1}}', False),
        ("[1, 2]", False),
        ('[["u", 1]]', False),
        ("{}", False),
    ],
)
def test_a_shape_needs_plain_values_and_every_needed_key(line: str, has_shape: bool) -> None:
    assert (shape_of(line, WANTED) is not None) == has_shape


def test_a_field_may_hold_the_byte_that_stands_for_a_long_separator(tmp_path: Path) -> None:
    """Two lines that hold, between them, as many separators and such bytes as two good lines would."""
    names = ["a", "b", "c"]
    assert read_clean(Block(b"1::2\x1f3\n4::5::6::7\n", 1), "::", names, names[:2]) is None
    assert not _check_separated("1::x\x1fy::3\n4::5::6", "::", 3)
    path = tmp_path / "ratings.dat"
    path.write_bytes(b"1::2::3::x\x1fy\n")
    config = ReadConfig(names=("user_id", "item_id", "rating", "note"), header=False)
    assert read_interactions(path, config).counts["good"] == 1

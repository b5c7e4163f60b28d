import datetime
import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from recsys.errors import DataError
from recsys.features.preparation.item_table import join_items, read_items
from recsys.features.preparation.items import write_items
from recsys.features.schema import ReadConfig
from recsys.features.vocabulary import Vocabulary

ITEMS = Vocabulary.from_ids([30, 10, 20])


def _joined(
    path: Path, config: ReadConfig | None = None, items: Vocabulary = ITEMS
) -> tuple[pl.DataFrame, dict[str, int]]:
    return join_items(read_items(path, config or ReadConfig()).table, items)


def test_items_stand_in_the_order_of_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,price,text\n10,"a, b",1.5,x\n30,c,2,\n99,d,3,y\n10,again,9,z\n')
    table, counts = _joined(path)
    assert table.rows() == [(1, 30, "c", 2.0, None), (2, 10, "a, b", 1.5, "x"), (3, 20, None, None, None)]
    assert table.columns == ["item_index", "item_id", "title", "price", "text"]
    assert counts == {"described": 2, "not_described": 1, "not_in_vocabulary": 1, "repeated": 1}


@pytest.mark.parametrize("name", ["items.parquet", "items.jsonl", "items.tsv"])
def test_every_format_gives_the_same_table(name: str, tmp_path: Path) -> None:
    frame = pl.DataFrame({"movieId": [20, 10], "title": ["b", "a"]})
    if name.endswith("parquet"):
        frame.write_parquet(tmp_path / name)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in frame.rows(named=True)))
    else:
        frame.write_csv(tmp_path / name, separator="\t")
    assert _joined(tmp_path / name)[0].rows() == [(1, 30, None), (2, 10, "a"), (3, 20, "b")]


def test_movielens_items_are_read_in_their_encoding(tmp_path: Path) -> None:
    path = tmp_path / "movies.dat.gz"
    path.write_bytes(gzip.compress("10::Les Misérables (1995)::Drama|Musical\n20::B::Drama\n".encode("latin-1")))
    with pytest.raises(DataError, match=r"set items_read\.encoding=latin-1"):
        read_items(path, ReadConfig())
    table, _ = _joined(path, ReadConfig(encoding="latin-1"))
    assert table.row(1) == (2, 10, "Les Misérables (1995)", ["Drama", "Musical"])


BAD: dict[str, tuple[str, list[tuple[int, str, str]]]] = {
    "items.csv": (
        "id,title,available_from,available_until\n10,a,,\n20\n,c,,\n30,d,2020-01-02,2020-01-01\n40,e,soon,\n5\x01,f,,\n",
        [
            (3, "missing fields: 1 of 4", "20"),
            (4, "item_id is empty", ",c,,"),
            (5, "available_from is later than available_until", "30,d,2020-01-02,2020-01-01"),
            (6, "available_from is no ISO time, wanted 2020-12-31T10:00", "40,e,soon,"),
            (7, "item_id holds a control character", "5\x01,f,,"),
        ],
    ),
    "items.jsonl": (
        '{"item_id": 10, "title": "a"}\n{"item_id"\n\n[1]\n{"title": "b"}\n{"item_id": null}\n',
        [
            (2, "no valid JSON", '{"item_id"'),
            (3, "empty line", ""),
            (4, "no JSON object", "[1]"),
            (5, "item_id is empty", '{"title": "b"}'),
            (6, "item_id is empty", '{"item_id": null}'),
        ],
    ),
    "movies.dat": (
        "10::A::X\n20::B\n::C::Y\n",
        [(2, "missing fields: 2 of 3", "20::B"), (3, "item_id is empty", "::C::Y")],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_item_is_set_aside_with_its_reason(name: str, tmp_path: Path) -> None:
    text, wanted = BAD[name]
    (tmp_path / name).write_text(text)
    result = read_items(tmp_path / name, ReadConfig(max_rejected_share=1.0))
    assert result.rejected.rows() == [(name, *row) for row in wanted]
    assert result.table["item_id"].to_list() == ["10"]
    assert result.num_lines == 1 + len(wanted)
    with pytest.raises(
        DataError, match=rf"{len(wanted)} of {len(wanted) + 1} items rejected.*items_read\.max_rejected"
    ):
        read_items(tmp_path / name, ReadConfig())


def test_bad_items_of_parquet_are_named_by_their_row(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 1, 1)
    columns = {"item_id": [10, None, 30], "available_from": [None, day, day], "available_until": [day, day, None]}
    pl.DataFrame(columns).write_parquet(tmp_path / "i.parquet")
    result = read_items(tmp_path / "i.parquet", ReadConfig(max_rejected_share=1.0))
    assert result.rejected.select("file", "line", "reason").rows() == [("i.parquet", 2, "item_id is empty")]
    utc = day.replace(tzinfo=datetime.UTC)
    assert result.table.rows() == [("10", None, utc), ("30", utc, None)]
    assert result.table.schema["available_from"] == pl.Datetime("us", "UTC")


def test_recbole_items_take_the_types_of_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.item"
    path.write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\temb:float_seq\n"
        "10\tToy Story\t1995\tAnimation Comedy\t1.5\t0.5 1\n20\tHeat\t\tCrime\t\t\n"
    )
    table = read_items(path, ReadConfig()).table
    assert table.columns == ["item_id", "movie_title", "release_year", "class", "price", "emb"]
    assert table.select(pl.exclude("emb")).rows() == [
        ("10", "Toy Story", "1995", ["Animation", "Comedy"], 1.5),
        ("20", "Heat", None, ["Crime"], None),
    ]
    assert table.schema["emb"] == pl.Array(pl.Float32, 2)
    assert table["emb"].to_list() == [[0.5, 1.0], None]


def test_one_json_object_of_lists_gives_attributes(tmp_path: Path) -> None:
    for text in ('{"10": [1, 2], "20": ["x"]}', '{\n "10": [1, 2],\n "20": ["x"]\n}\n'):
        (tmp_path / "i.json").write_text(text)
        table = read_items(tmp_path / "i.json", ReadConfig()).table
        assert table.rows() == [("10", ["1", "2"]), ("20", ["x"])]
    (tmp_path / "i.json").write_text('{"item_id": 10, "title": "a"}')
    assert read_items(tmp_path / "i.json", ReadConfig()).table.rows() == [("10", "a")]


def test_json_values_become_columns_of_one_type(tmp_path: Path) -> None:
    rows = [
        {"item_id": "a", "n": 1, "x": 1, "tags": ["u", "v"], "emb": [1, 0.5], "is_new": True, "odd": {"k": 1}},
        {"item_id": "b", "n": 2, "x": 0.5, "tags": [], "emb": None, "is_new": None, "odd": "t"},
    ]
    (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = read_items(tmp_path / "i.jsonl", ReadConfig()).table
    kinds = [pl.String, pl.Int64, pl.Float64, pl.List(pl.String), pl.Array(pl.Float32, 2), pl.Boolean, pl.String]
    assert list(table.schema.values()) == kinds
    assert table.row(1) == ("b", 2, 0.5, [], None, None, "t")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0]], r"i\.parquet:2: column emb holds a vector of 1 numbers, before it 2"),
        ([[1.0, 2.0], [1.0, float("nan")]], r"i\.parquet:2: column emb holds a vector with a value that is no finite"),
        ([[1.0, 2.0], [None, 1.0]], r"i\.parquet:2: column emb holds a vector with a value that is no finite"),
        ([[1.0, 1e300], [1.0, 1.0]], r"i\.parquet:1: column emb holds a vector with a value that is no finite"),
    ],
)
def test_vectors_that_are_ragged_or_not_finite_are_refused(
    vectors: list[list[float | None]], message: str, tmp_path: Path
) -> None:
    pl.DataFrame({"item_id": [1, 2], "emb": vectors}).write_parquet(tmp_path / "i.parquet")
    with pytest.raises(DataError, match=message):
        read_items(tmp_path / "i.parquet", ReadConfig())


def test_a_folder_of_items_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    (folder / "a.csv").write_text("item_id,title\n10,x\n")
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"item_id,price\n20,1.5\n20\n"))
    result = read_items(folder, ReadConfig(max_rejected_share=0.5))
    assert result.table.rows() == [("10", "x", None), ("20", None, 1.5)]
    assert result.rejected.rows() == [("b.csv.gz", 3, "missing fields: 1 of 2", "20")]


def test_a_second_column_of_ids_is_told(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("asin,parent_asin,title\n1,2,x\n")
    result = read_items(tmp_path / "i.csv", ReadConfig())
    assert result.table["item_id"].to_list() == ["2"]
    assert result.notes == ["item_id is read from column parent_asin, not from asin; "
                            "items_read.columns.item_id=asin reads the other"]  # fmt: skip


def test_a_table_without_ids_names_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("sku,title\n10,a\n")
    with pytest.raises(
        DataError, match=r"no column for item_id; found sku, title; name it: items_read\.columns\.item_id=sku"
    ):
        read_items(path, ReadConfig())
    assert _joined(path, ReadConfig(columns={"item_id": "sku"}))[1]["described"] == 1


def test_a_damaged_table_is_one_clear_line(tmp_path: Path) -> None:
    damaged = {
        "i.parquet": (b"PAR1xx", "Parquet file is damaged or cut short"),
        "i.jsonl": (b'{"item_id"\n', "no line is a JSON object"),
        "i.csv.gz": (gzip.compress(b"item_id,title\n" * 99)[:-9], "gzip file is cut short"),
        "i.txt": (b"1 2 3\n", "holds no table with columns"),
    }
    for name, (data, message) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            read_items(tmp_path / name, ReadConfig())
        assert "\n" not in str(caught.value)


def test_text_ids_join_by_their_text(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n007,bond\n7,seven\n")
    table, _ = _joined(path, items=Vocabulary.from_ids(["007", "7"]))
    assert table["title"].to_list() == ["bond", "seven"]


def test_the_first_value_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,price,title\n10,1.5,a\n20,2,7\n30,abc,c\n40,,d\n50,odd,e\n60,9,f\n")
    result = read_items(path, ReadConfig())
    assert result.table["price"].to_list() == ["1.5", "2", "abc", None, "odd", "9"]
    assert result.notes == ["items.csv:4: column price is text: 'abc' is no number, though 3 of 6 values are"]


def test_rows_that_are_set_aside_have_no_say_in_a_type(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,price,available_from\n10,1.5,\n,abc,\n30,odd,soon\n40,2,2020-01-01\n")
    result = read_items(path, ReadConfig(max_rejected_share=1.0))
    assert result.table["price"].to_list() == [1.5, 2.0]
    assert result.rejected.height == 2
    assert result.notes == []


def test_types_that_are_told_are_no_accident(tmp_path: Path) -> None:
    path = tmp_path / "a.item"
    path.write_text("item_id:token\tyear:token\tprice:float\n10\t1995\t1\n20\t1996\t2\n30\t199x\t3x\n")
    notes = read_items(path, ReadConfig()).notes
    assert notes == ["a.item:4: column price is text: '3x' is no number, though 2 of 3 values are"]


def test_a_column_of_two_types_in_two_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,price\n10,1.5\n")
    (tmp_path / "b.csv").write_text("item_id,price\n20,cheap\n")
    result = read_items(tmp_path, ReadConfig())
    assert result.notes == ["column price is text: it holds numbers in a.csv, but text in b.csv"]


def test_a_table_that_describes_no_item_of_the_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n7,a\n8,b\n")
    with pytest.raises(
        DataError, match=r"describes none of the 3 items of the log: it has '7', the log has '30'; name"
    ):
        write_items(tmp_path, path, ReadConfig(), ITEMS, lambda _: None)
    path.write_text("item_id,title\n7,a\n20,b\n")
    assert write_items(tmp_path, path, ReadConfig(), ITEMS, lambda _: None)["described"] == 1

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from recsys.errors import DataError
from recsys.features.preparation.item_table import join_items, read_items
from recsys.features.schema import ReadConfig
from recsys.features.vocabulary import Vocabulary

ITEMS = Vocabulary.from_ids([30, 10, 20])


def _joined(
    path: Path, config: ReadConfig | None = None, items: Vocabulary = ITEMS
) -> tuple[pl.DataFrame, dict[str, int]]:
    return join_items(read_items(path, config or ReadConfig())[0], items)


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
    assert table.row(1) == (2, 10, "Les Misérables (1995)", "Drama|Musical")


def test_malformed_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id,title\n10,a\n20\n,c\n30,d\n")
    table, num_rejected = read_items(path, ReadConfig())
    assert table["item_id"].to_list() == ["10", "30"]
    assert num_rejected == 2


def test_a_table_without_ids_names_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("sku,title\n10,a\n")
    with pytest.raises(
        DataError, match=r"no column for item_id; found sku, title; name it: items_read\.columns\.item_id=sku"
    ):
        read_items(path, ReadConfig())
    assert _joined(path, ReadConfig(columns={"item_id": "sku"}))[1]["described"] == 1


def test_a_damaged_table_is_one_clear_line(tmp_path: Path) -> None:
    for name, data in (("i.parquet", b"PAR1xx"), ("i.jsonl", b'{"item_id": 1}\n{"item_id"\n')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="cannot be read as a table of items") as caught:
            read_items(tmp_path / name, ReadConfig())
        assert "\n" not in str(caught.value)


def test_text_ids_join_by_their_text(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n007,bond\n7,seven\n")
    table, _ = _joined(path, items=Vocabulary.from_ids(["007", "7"]))
    assert table["title"].to_list() == ["bond", "seven"]

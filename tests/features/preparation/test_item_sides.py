import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import open_without_leaks
from recsys.features.preparation.append import append
from recsys.features.preparation.policies import EventConfig
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

LOO = SplitConfig(protocol="loo")


def log(path: Path, items: str, kinds: str = "", start: int = 0) -> Path:
    """Two users, one after another, who do the same; `kinds` are letters, `-` is no type."""
    rows = [
        f"u{user},{item},{1_500_000_000 + start + 100 * user + n}" + (f",{kinds[n].replace('-', '')}" if kinds else "")
        for user in range(2)
        for n, item in enumerate(items)
    ]
    path.write_text("user,item,ts" + (",event_type" if kinds else "") + "\n" + "\n".join(rows) + "\n")
    return path


def table(path: Path, **columns: Any) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


def prepared(folder: Path, items: Path | None, said: list[str] | None = None, **settings: Any) -> PreparedDataset:
    source = log(folder / "log.csv", "abcde")
    config = PrepareConfig(split=LOO, items=items, **settings)
    return prepare(source, folder / "data", config, None if said is None else said.append)


def by_raw(dataset: PreparedDataset, column: Any) -> dict[Any, Any]:
    return dict(zip(dataset.items.decode(range(1, dataset.num_items + 1)), column[1:].tolist(), strict=True))


def test_categories_are_numbered_by_their_first_item(tmp_path: Path) -> None:
    items = table(tmp_path / "i.parquet", item_id=list("xedca"), genre=["u", "r", "r", "", "s"])
    said: list[str] = []
    dataset = prepared(tmp_path, items, said)
    assert dataset.category_names == ("s", "r")
    assert by_raw(dataset, dataset.item_categories) == {"a": 1, "b": 0, "c": 0, "d": 2, "e": 2}
    assert dataset.item_categories.dtype == np.int32
    assert dataset.item_categories[0] == 0
    assert isinstance(dataset.item_categories, np.memmap)
    assert "items: 2 categories from column genre; 2 items have none" in said
    dataset.verify()


def test_the_first_of_a_list_and_an_integer_are_categories(tmp_path: Path) -> None:
    items = table(tmp_path / "i.parquet", item_id=list("ab"), tags=[["x", "y"], ["y"]], class_id=[7, 9])
    dataset = prepared(tmp_path, items)
    assert dataset.category_names == ("x", "y")
    assert by_raw(dataset, dataset.item_categories) == {"a": 1, "b": 2, "c": 0, "d": 0, "e": 0}
    other = prepared(tmp_path, items, item_category="class_id")
    assert other.category_names == ("7", "9")


def test_vectors_stand_by_index_and_items_without_one_have_zeros(tmp_path: Path) -> None:
    items = table(tmp_path / "i.parquet", item_id=list("ca"), emb=[[1.0, 2.0], [3.0, 4.0]])
    dataset = prepared(tmp_path, items)
    assert dataset.vector_width == 2
    assert dataset.item_vectors.dtype == np.float32
    assert by_raw(dataset, dataset.item_vectors) == {"a": [3, 4], "b": [0, 0], "c": [1, 2], "d": [0, 0], "e": [0, 0]}
    assert dataset.item_vectors[0].tolist() == [0, 0]


def test_of_several_columns_none_is_taken_until_one_is_named(tmp_path: Path) -> None:
    vectors = {"emb": [[1.0, 0.0]], "other": [[2.0]]}
    items = table(tmp_path / "i.parquet", item_id=["a"], genre=["g"], category=["c"], **vectors)
    said: list[str] = []
    dataset = prepared(tmp_path, items, said)
    assert (dataset.category_names, dataset.vector_width) == ((), 0)
    assert "items: none of genre, category is taken; item_category=genre would take that one" in said
    named = prepared(tmp_path, items, item_category="category", item_vectors="other")
    assert (named.category_names, named.vector_width) == (("c",), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_category": "gnre"}, "item_category='gnre': the table of items has no such column of texts or integers"),
        ({"item_category": "price"}, "item_category='price': the table of items has no such column"),
        (
            {"item_vectors": "genre"},
            "item_vectors='genre': the table of items has no such column of vectors; it has no",
        ),
    ],
)
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    items = table(tmp_path / "i.parquet", item_id=["a"], genre=["g"], price=[1.5])
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, items, **settings)


def test_a_column_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item_vectors='emb': there is no table of items; name one: --items TABLE"):
        prepared(tmp_path, None, item_vectors="emb")


def test_what_a_dataset_lacks_is_named_with_the_remedy(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, None)
    assert (dataset.category_names, dataset.vector_width, dataset.event_type_names) == ((), 0, ())
    with pytest.raises(DataError, match="has no categories; prepare it again .* --items TABLE, and item_category="):
        _ = dataset.item_categories
    with pytest.raises(DataError, match="has no item vectors; prepare it again"):
        _ = dataset.item_vectors


def test_a_day_keeps_the_numbers_and_adds_rows(tmp_path: Path) -> None:
    items = table(tmp_path / "i.parquet", item_id=list("ab"), genre=["s", "r"], emb=[[1.0], [2.0]])
    prepare(log(tmp_path / "one.csv", "abab", "xyxy"), tmp_path / "data", PrepareConfig(split=LOO, items=items))
    day = log(tmp_path / "two.csv", "cbac", "zxz-", start=1000)
    grown = append(day, tmp_path / "data")
    assert grown.event_type_names == ("x", "y", "z")
    assert by_raw(grown, grown.item_categories) == {"a": 1, "b": 2, "c": 0}
    assert by_raw(grown, grown.item_vectors) == {"a": [1], "b": [2], "c": [0]}
    (shard,) = grown.shards
    assert shard.event_types is not None
    assert shard.event_types[: shard.offsets[1]].tolist() == [1, 2, 1, 2, 3, 1, 3, 0]
    grown.verify()
    more = table(tmp_path / "j.parquet", item_id=list("cba"), genre=["s", "r", "t"], emb=[[3.0], [2.0], [1.0]])
    again = append(log(tmp_path / "three.csv", "cc", "yy", start=2000), tmp_path / "data", items=more)
    assert again.category_names == ("s", "r", "t")
    assert by_raw(again, again.item_categories) == {"a": 3, "b": 2, "c": 1}
    assert by_raw(again, again.item_vectors) == {"a": [1], "b": [2], "c": [3]}


def test_side_columns_change_the_side_hash_alone(tmp_path: Path) -> None:
    hashes = []
    for number in range(2):
        items = table(tmp_path / f"{number}.parquet", item_id=list("ab"), genre=["s", "rs"[number]])
        hashes.append((prepared(tmp_path, items).data_hash, prepared(tmp_path, items).side_hash))
    plain = prepared(tmp_path, None)
    assert hashes[0][0] == hashes[1][0] == plain.data_hash
    assert hashes[0][1] != hashes[1][1]
    assert plain.side_hash == ""


def test_a_changed_byte_of_a_side_column_is_found(tmp_path: Path) -> None:
    items = table(tmp_path / "i.parquet", item_id=list("ab"), emb=[[1.0], [2.0]])
    dataset = prepared(tmp_path, items)
    path = dataset.path / "item_vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = PreparedDataset.open(dataset.path)
    with pytest.raises(DataError, match=r"a byte of its side columns \(item_vectors.npy, …\) differs"):
        changed.verify()
    with pytest.raises(DataError, match=r"changed bytes: .*side columns.* item_vectors.npy"):
        open_without_leaks(dataset.path)


def test_a_dataset_of_an_older_version_opens_and_is_prepared_again_for_its_side_columns(tmp_path: Path) -> None:
    """It has no `side`, and its arrays are those of today without the side columns."""
    source = log(tmp_path / "log.csv", "abc", "xyx")
    dataset = prepare(source, tmp_path / "data", PrepareConfig(split=LOO))
    manifest_file = dataset.path / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    del manifest["side"], manifest["config"]["item_category"], manifest["config"]["item_vectors"]
    side = "shards/00000/event_types.npy"
    del manifest["files"][side]
    (dataset.path / side).unlink()
    manifest_file.write_text(json.dumps(manifest))
    older = PreparedDataset.open(dataset.path)
    older.verify()
    assert older.event_type_names == ()
    assert older.shards[0].event_types is None
    again = prepare(source, tmp_path / "data", PrepareConfig(split=LOO))
    assert again.event_type_names == ("x", "y")
    assert again.data_hash == dataset.data_hash


def test_an_older_dataset_of_a_log_without_side_columns_is_up_to_date(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, None)
    manifest_file = dataset.path / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    del manifest["side"], manifest["config"]["item_category"], manifest["config"]["item_vectors"]
    manifest_file.write_text(json.dumps(manifest))
    said: list[str] = []
    prepared(tmp_path, None, said)
    assert any("up to date" in line for line in said)


@pytest.mark.parametrize("number", [1, 3])
def test_types_are_those_of_the_log_whatever_the_shards(tmp_path: Path, number: int) -> None:
    source = log(tmp_path / "log.csv", "abcd", "xy-z")
    dataset = prepare(source, tmp_path / "data", PrepareConfig(split=LOO, shards=number))
    assert dataset.event_type_names == ("x", "y", "z")
    for shard in dataset.shards:
        assert shard.event_types is not None
        assert shard.event_types.tolist() == [1, 2, 0, 3] * len(shard.users)


def test_a_type_that_no_kept_event_has_gets_no_number(tmp_path: Path) -> None:
    source = log(tmp_path / "log.csv", "abcab", "zxyxy")
    config = PrepareConfig(split=LOO, events=EventConfig(types=("x", "y")))
    assert prepare(source, tmp_path / "data", config).event_type_names == ("x", "y")

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.vocabulary import Vocabulary

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
IDS = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=40) | st.lists(TEXTS, unique=True, max_size=40)


@settings(max_examples=60, deadline=None)
@given(ids=IDS)
def test_saved_ids_come_back_in_their_order(
    ids: list[int] | list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("vocabulary")
    Vocabulary.from_ids(ids).save(folder, "items")
    loaded = Vocabulary.load(folder, "items")
    assert len(loaded) == len(ids)
    assert loaded.decode(range(1, len(ids) + 1)) == ids
    assert loaded.encode(ids).tolist() == list(range(1, len(ids) + 1))
    assert loaded.encode(ids).dtype == np.int64


def test_an_integer_and_its_text_mean_the_same_id() -> None:
    numbers, texts = Vocabulary.from_ids([12, -3]), Vocabulary.from_ids(["12", "a"])
    assert numbers.encode(["12", 12, "-3"]).tolist() == [1, 1, 2]
    assert numbers.encode(["012", " 12", "+12", "1_2", "x", True, 2**70]).tolist() == [0] * 7
    assert texts.encode([12, "12", "a", "A"]).tolist() == [1, 1, 2, 0]
    assert numbers.encode(np.array([-3, 7])).tolist() == [2, 0]


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=30),
    asked=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=10),
)
def test_an_array_of_integers_means_what_their_list_means(ids: list[int], asked: list[int]) -> None:
    wanted, found = Vocabulary.from_ids(ids), Vocabulary.from_ids(np.array(ids, np.int64))
    assert found.data.tobytes() == wanted.data.tobytes()
    assert found.offsets.tolist() == wanted.offsets.tolist()
    assert found.kind == "int"
    both = [*asked, *ids]
    assert found.encode(np.array(both, np.int64)).tolist() == wanted.encode(both).tolist()


def test_an_integer_that_stands_twice_in_an_array_is_refused() -> None:
    with pytest.raises(ValueError, match="7 occurs twice"):
        Vocabulary.from_ids(np.array([7, 3, 7]))


@pytest.mark.parametrize("index", [0, -1, 3])
def test_padding_and_what_lies_outside_are_no_items(index: int) -> None:
    with pytest.raises(ValueError, match=rf"index {index} is no item index; wanted 1\.\.2"):
        Vocabulary.from_ids(["a", "b"]).decode([1, index])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "'a' occurs twice"),
        ([1, "a"], "id 'a' is a str"),
        (["a", 1], "id 'a' is a str"),
        ([True], "id True is a bool"),
        (["a", ""], "empty text"),
        ([2**63], "beyond int64"),
    ],
)
def test_ids_that_cannot_be_told_apart_are_refused(ids: list[int] | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_ids(ids)


@pytest.mark.parametrize("name", ["items_bytes.npy", "items_offsets.npy", "items.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    Vocabulary.from_ids(["aa", "b", "c"]).save(tmp_path, "items")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        Vocabulary.load(tmp_path, "items")
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        Vocabulary.load(tmp_path, "items")


@pytest.mark.parametrize("header", [{"kind": "int", "size": 2}, {"kind": "float", "size": 3}, {"kind": "int"}, []])
def test_a_header_that_does_not_fit_is_refused(header: object, tmp_path: Path) -> None:
    Vocabulary.from_ids([1, 2, 3]).save(tmp_path, "items")
    (tmp_path / "items.json").write_text(json.dumps(header))
    with pytest.raises(DataError):
        Vocabulary.load(tmp_path, "items")


def test_offsets_that_run_back_are_refused(tmp_path: Path) -> None:
    Vocabulary.from_ids(["aa", "bb", "cc"]).save(tmp_path, "items")
    np.save(tmp_path / "items_offsets.npy", np.array([0, 4, 2, 6]))
    with pytest.raises(DataError, match="do not fit each other"):
        Vocabulary.load(tmp_path, "items")

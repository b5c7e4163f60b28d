"""A raw id stands for one index."""

import numpy as np
import pytest

from recsys.features.leakage import find_leaks
from recsys.features.vocabulary import Vocabulary
from tests.features.leakage.planted import (
    Prepared,
    changed,
    names,
    nothing,
)


def stored(ids: list[bytes], kind: str) -> Vocabulary:
    """A vocabulary of these very bytes, as a faulty preparation might write it."""
    offsets = np.cumsum([0, *(len(raw) for raw in ids)])
    return Vocabulary(np.frombuffer(b"".join(ids), np.uint8), offsets, kind)  # type: ignore[arg-type]  # one of two


@pytest.mark.parametrize(("kind", "what"), [("users", "duplicated user"), ("items", "duplicated item")])
def test_a_raw_id_with_two_indices_is_found(prepared: Prepared, kind: str, what: str) -> None:
    dataset = changed(prepared("time"), nothing)
    vocabulary = getattr(dataset, kind)
    ids = [str(raw).encode() for raw in vocabulary.decode(np.arange(1, len(vocabulary) + 1))]
    ids[7] = ids[2]
    dataset.__dict__[kind] = stored(ids, vocabulary.kind)
    (leak,) = find_leaks(dataset)
    assert (leak.name, leak.count) == (what, 1)
    assert "at index 8" in leak.example


def test_an_integer_written_in_two_ways_is_one_id(prepared: Prepared) -> None:
    dataset = changed(prepared("time"), nothing)
    ids = [str(raw).encode() for raw in dataset.items.decode(np.arange(1, dataset.num_items + 1))]
    ids[7] = b"0" + ids[2]
    dataset.__dict__["items"] = stored(ids, "int")
    assert names(dataset) == {"duplicated item"}
    ids[7] = b"-" + ids[2]
    dataset.__dict__["items"] = stored(ids, "int")
    assert names(dataset) == set()


def test_a_vocabulary_with_more_items_than_the_dataset_is_found(prepared: Prepared) -> None:
    dataset = changed(prepared("time"), nothing)
    ids = [str(raw).encode() for raw in dataset.items.decode(np.arange(1, dataset.num_items + 1))]
    dataset.__dict__["items"] = stored([*ids, b"999"], "int")
    assert names(dataset) == {"vocabulary from test"}

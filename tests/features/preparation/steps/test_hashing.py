import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.preparation.steps.hashing import hash_ids, text_bytes

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
MASK = 2**64 - 1


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _text_hash(text: str) -> int:
    """The definition of the module's docstring, word by word."""
    data = text.encode()
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    total = len(data) * (_splitmix(0) | 1)
    total += sum(word * (_splitmix(number) | 1) for number, word in enumerate(words, start=1))
    return _splitmix(total & MASK)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(TEXTS, min_size=1, max_size=20))
def test_texts_hash_as_defined(ids: list[str]) -> None:
    assert hash_ids(pl.Series(ids)).tolist() == [_text_hash(text) for text in ids]


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_integers_hash_as_defined(ids: list[int]) -> None:
    assert hash_ids(pl.Series(ids, dtype=pl.Int64)).tolist() == [_splitmix(value & MASK) for value in ids]


def test_the_hash_never_changes() -> None:
    assert hash_ids(pl.Series([0, 1, -1])).tolist() == [
        16294208416658607535,
        10451216379200822465,
        16490336266968443936,
    ]
    assert hash_ids(pl.Series(["a", "user-0000017", "é"])).tolist() == [
        12636959747212250321,
        6656144458793108520,
        16470201872225468575,
    ]


def test_a_piece_of_a_column_hashes_as_the_whole() -> None:
    ids = pl.Series([f"user-{n}" * (n % 5 + 1) for n in range(100)])
    whole = hash_ids(ids)
    assert (hash_ids(ids[30:70]) == whole[30:70]).all()
    assert (hash_ids(pl.concat([ids[:10], ids[10:]], rechunk=False)) == whole).all()
    data, offsets = text_bytes(ids[30:33])
    assert data.tobytes().decode() == "".join(ids[30:33])
    assert np.diff(offsets).tolist() == [len(text) for text in ids[30:33]]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_neighbouring_ids_spread_evenly(kind: str) -> None:
    ids = pl.Series(range(80_000))
    counts = np.bincount((hash_ids(ids if kind == "int" else ids.cast(pl.String)) % np.uint64(8)).astype(int))
    assert counts.min() > 9_600
    assert counts.max() < 10_400


def test_texts_that_differ_by_zeros_or_length_differ() -> None:
    ids = ["a", "a\0", "a" * 8, "a" * 9, "a" * 16, "a" * 8 + "\0" * 8, "b" + "a" * 15, "a" * 15 + "b"]
    assert len(set(hash_ids(pl.Series(ids)).tolist())) == len(ids)

"""Ids of strings and of features."""

from typing import Any

import pytest
import torch

from recsys.models.embedding_table import FeatureIds, IdCheck, string_ids
from recsys.models.embedding_table.ids import feature_numbers

EMPTY = int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little", signed=True)  # BLAKE2b-64 of nothing


def test_a_string_has_the_same_id_everywhere() -> None:
    ids = string_ids(["ann", "", "ann", "Ä"])
    assert ids.tolist() == [-6488803333072012659, EMPTY, -6488803333072012659, -3835132901762835492]


def test_features_do_not_share_ids_and_carry_their_number() -> None:
    features = FeatureIds(["user", "item", "shop"], bits=2)
    given = torch.tensor([[0, 5], [2**62 - 1, 7]])
    found = torch.stack([features.of(name, given) for name in features.numbers])
    assert len(torch.unique(found)) == found.numel()
    assert feature_numbers(found.reshape(3, -1), 2).tolist() == [[0] * 4, [1] * 4, [2] * 4]
    hashed = features.hashed("shop", torch.arange(-500, 500))
    assert len(torch.unique(hashed)) == 1000
    assert set(feature_numbers(hashed, 2).tolist()) == {2}


@pytest.mark.parametrize("wrong", [-1, 2**54])
def test_an_id_that_does_not_fit_is_refused(wrong: int) -> None:
    features = FeatureIds(["user"])
    with pytest.raises(ValueError, match=rf"ids of 'user' lie in \[{wrong}, {wrong}\]; wanted 0 to {2**54 - 1}"):
        features.of("user", torch.tensor([wrong]))


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        (torch.tensor([1], dtype=torch.int32), "torch.int32"),
        (torch.tensor([1], dtype=torch.uint8), "torch.uint8"),
        (torch.tensor([True]), "torch.bool"),
        (torch.tensor([1.0]), "torch.float32"),
        ([1], "list"),
        (None, "NoneType"),
    ],
)
def test_ids_of_another_type_would_lose_their_feature_and_are_refused(ids: Any, given: str) -> None:
    features = FeatureIds(["user", "item"])
    for call in (features.of, features.hashed):
        with pytest.raises(ValueError, match=f"^ids is {given}; wanted a tensor of int64"):
            call("item", ids)


def test_features_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="3 features do not fit 1 bits; wanted at most 2"):
        FeatureIds(["a", "b", "c"], bits=1)
    with pytest.raises(ValueError, match=r"features \['a', 'a'\] holds a name twice"):
        FeatureIds(["a", "a"])
    with pytest.raises(ValueError, match="feature 'x' is unknown; wanted a, b"):
        FeatureIds(["a", "b"]).of("x", torch.tensor([1]))
    with pytest.raises(ValueError, match=r"features='user' is one string; wanted several: \['user'\]"):
        FeatureIds("user")
    for bits in (0, 33, 2.5, True):
        with pytest.raises(ValueError, match=f"bits={bits}; wanted a whole number from 1 to 32"):
            FeatureIds(["a"], bits=bits)  # type: ignore[arg-type]  # what no type checker has seen comes here too


@pytest.mark.parametrize(
    ("strings", "message"),
    [("ann", r"strings='ann' is one string; wanted several: \['ann'\]"), ([1], "strings holds 1, of type int; wanted")],
)
def test_what_are_no_strings_is_refused(strings: Any, message: str) -> None:
    for call in (string_ids, IdCheck().add):
        with pytest.raises(ValueError, match=message):
            call(strings)


def test_the_check_finds_two_strings_with_one_id() -> None:
    check = IdCheck()
    assert check.add([f"item {number}" for number in range(10_000)]) == []
    assert check.add(["item 7"]) == []
    assert check.add_ids(["new"], string_ids(["item 9"])) == [("item 9", "new")]

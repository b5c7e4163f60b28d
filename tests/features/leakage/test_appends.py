"""Late events of an append excuse as many disorders of the vocabulary, and no more."""

import numpy as np
import pytest

from recsys.features.dataset import PreparedDataset
from tests.features.leakage.planted import (
    Arrays,
    Change,
    Manifest,
    Prepared,
    changed,
    items_after_the_cut_permuted,
    items_of_the_future_first,
    names,
)


def appended(dataset: PreparedDataset, *change: Change, **day: int) -> PreparedDataset:
    """The dataset after these changes, whose manifest tells of one append."""
    told = {"events": 3, "late_events": 0, "first_new_item_index": dataset.num_items + 1, "first_new_user_index": 25}

    def make(shards: list[Arrays], manifest: Manifest) -> None:
        for one in change:
            one(shards, manifest)
        manifest["appends"] = [told | day]

    return changed(dataset, make)


def test_as_many_disorders_as_late_events_of_an_append_are_no_leak(prepared: Prepared) -> None:
    dataset = prepared("time")
    assert "vocabulary order" in names(changed(dataset, items_after_the_cut_permuted))
    assert "vocabulary order" in names(appended(dataset, items_after_the_cut_permuted))
    assert "vocabulary order" not in names(appended(dataset, items_after_the_cut_permuted, late_events=1))


def last_item_before_two(shards: list[Arrays], manifest: Manifest) -> None:
    """The last item stands before two that appeared earlier: two disorders."""
    last = manifest["counts"]["items"]
    place = np.arange(last + 1, dtype=np.int32)
    place[last], place[last - 2 : last] = last - 2, (last - 1, last)
    for arrays in shards:
        arrays["items"] = place[arrays["items"]]


@pytest.mark.parametrize("new_items", [0, 2, 10])
def test_one_disorder_more_than_late_events_is_found_wherever_the_border_is(prepared: Prepared, new_items: int) -> None:
    dataset = prepared("time")
    for late, is_found in ((1, True), (2, False)):
        first = dataset.num_items + 1 - new_items
        # An append's own disorders are excused by late events of later ones alone.
        is_own = new_items == 10
        found = names(appended(dataset, last_item_before_two, late_events=late, first_new_item_index=first))
        assert ("vocabulary order" in found) is (is_found or is_own)


@pytest.mark.parametrize(("late", "is_found"), [((2, 0), True), ((2, 1), True), ((1, 2), False)])
def test_disorders_inside_an_append_are_excused_by_late_events_since_alone(
    prepared: Prepared, late: tuple[int, int], is_found: bool
) -> None:
    dataset = prepared("time")

    def change(shards: list[Arrays], manifest: Manifest) -> None:
        last_item_before_two(shards, manifest)
        days = zip(late, (dataset.num_items - 9, dataset.num_items + 1), strict=True)
        told = {"events": 3, "first_new_user_index": 25}
        manifest["appends"] = [told | {"late_events": count, "first_new_item_index": first} for count, first in days]

    assert ("vocabulary order" in names(changed(dataset, change))) is is_found


def test_the_border_of_an_append_hides_no_disorder(prepared: Prepared) -> None:
    dataset = prepared("time")
    last = dataset.num_items
    found = names(appended(dataset, items_after_the_cut_permuted, first_new_item_index=last))
    assert "vocabulary order" in found
    future_first = names(appended(dataset, items_of_the_future_first, first_new_item_index=2))
    assert "vocabulary from test" in future_first


@pytest.mark.parametrize(
    "days",
    [
        [{"late_events": 4}],
        [{"late_events": 10**9, "events": 10**9}],
        [{"late_events": -1}],
        [{"first_new_item_index": 0}],
        [{"first_new_item_index": 999}],
        [{"first_new_item_index": 30}, {"first_new_item_index": 29}],
        [{"first_new_user_index": 9}, {"first_new_user_index": 8}],
    ],
)
def test_an_append_that_cannot_have_been_is_found(prepared: Prepared, days: list[dict[str, int]]) -> None:
    dataset = prepared("time")
    told = {"events": 3, "late_events": 0, "first_new_item_index": dataset.num_items, "first_new_user_index": 25}

    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        manifest["appends"] = [told | day for day in days]

    assert "changed manifest" in names(changed(dataset, change))

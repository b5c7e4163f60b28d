"""Planted leaks are found by name, with arrays, manifest and split hash made to agree."""

import re
from pathlib import Path

import pytest

from recsys.errors import DataError
from recsys.features.leakage import find_leaks, leakage_report
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from tests.features.leakage.planted import (
    Arrays,
    Change,
    Manifest,
    Prepared,
    changed,
    cuts_moved_together,
    duplicated_row,
    earlier_cut,
    item_beyond_the_vocabulary,
    item_without_events,
    items_after_the_cut_permuted,
    items_of_the_future_first,
    later_cut,
    later_cuts_told,
    much_later_cuts_told,
    names,
    offset_by_one,
    other_unit,
    padding_among_the_items,
    swapped_times,
    tie,
    tie_of_an_earlier_target,
    times_of_whole_weeks,
    train_end_beyond,
    user_in_two_shards,
)

PLANTED_IN_TIME: list[tuple[Change, str]] = [
    (later_cut, "future event"),
    (earlier_cut, "misplaced event"),
    (tie, "same-second tie across the cut"),
    (tie_of_an_earlier_target, "same-second tie across the cut"),
    (duplicated_row, "duplicated user"),
    (user_in_two_shards, "duplicated user"),
    (items_of_the_future_first, "vocabulary from test"),
    (items_after_the_cut_permuted, "vocabulary order"),
    (item_without_events, "vocabulary from test"),
    (item_beyond_the_vocabulary, "unknown item"),
    (padding_among_the_items, "unknown item"),
    (swapped_times, "events out of order"),
    (train_end_beyond, "misplaced cut"),
    (offset_by_one, "misplaced cut"),
    (other_unit, "misplaced cut"),
    (later_cuts_told, "misplaced cut"),
    (much_later_cuts_told, "misplaced event"),
    (cuts_moved_together, "misplaced cut"),
    (times_of_whole_weeks, "misplaced event"),
]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("change", "name"), PLANTED_IN_TIME, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_leak_in_a_split_by_time_is_found_by_name(
    prepared: Prepared, change: Change, name: str, shards: int
) -> None:
    if change is user_in_two_shards and shards == 1:
        shards = 2
    dataset = changed(prepared("time", shards), change)
    assert name in names(dataset)
    with pytest.raises(DataError, match=f"leakage: .*{re.escape(name)}: "):
        leakage_report(dataset)


@pytest.mark.parametrize("protocol", ["loo", "loo-novalid", "ratio"])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (duplicated_row, "duplicated user"),
        (user_in_two_shards, "duplicated user"),
        (item_without_events, "vocabulary from test"),
        (swapped_times, "events out of order"),
        (train_end_beyond, "misplaced cut"),
        (offset_by_one, "misplaced cut"),
        (items_of_the_future_first, "vocabulary order"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_leak_in_a_declared_leaky_split_is_found_by_name(
    prepared: Prepared, protocol: str, change: Change, name: str
) -> None:
    assert name in names(changed(prepared(protocol, 2), change))


@pytest.mark.parametrize("protocol", ["loo", "loo-novalid", "ratio"])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_cut_one_event_off_for_one_user_is_found_by_every_rule(prepared: Prepared, protocol: str, step: int) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del manifest
        shards[0]["train_end"][1] += step
        shards[0]["valid_end"][1] = max(shards[0]["valid_end"][1], shards[0]["train_end"][1])

    assert "misplaced cut" in names(changed(prepared(protocol), change))


def test_a_training_event_later_than_the_users_own_target_is_a_future_event(prepared: Prepared) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        """The events of a user are sorted, but for the last training event, which is the newest."""
        del manifest
        end = int(shards[0]["offsets"][1])
        shards[0]["times"][end - 3] = shards[0]["times"][end - 1] + 1

    dataset = changed(prepared("loo"), change)
    assert {"future event", "events out of order"} <= names(dataset)


def test_a_target_at_the_very_time_of_the_training_event_before_is_no_future_event(tmp_path: Path) -> None:
    lines = "".join(f"{user},{item},{1_500_000_000 + item // 3}\n" for user in range(3) for item in range(6))
    (tmp_path / "log.csv").write_text("user,item,ts\n" + lines)
    config = PrepareConfig(split=SplitConfig(protocol="loo"))
    assert find_leaks(prepare(tmp_path / "log.csv", tmp_path / "data", config)) == []


def test_shards_whose_times_count_in_another_unit_are_named(prepared: Prepared) -> None:
    assert "times of another unit" in names(changed(prepared("loo", 3), other_unit))


def test_cuts_that_were_edited_after_preparation_are_found_by_their_hash(prepared: Prepared) -> None:
    dataset = changed(prepared("time"), earlier_cut, sealed=False)
    assert "changed split" in names(dataset)

"""Planted leaks are found by name; the same data without the leak is silent."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import leakage_report
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare

DAY = 86_400


def _prepare(folder: Path, shards: int = 1, **split: Any) -> PreparedDataset:
    rows = [(u, (u * 7 + n * n) % 40, 1_500_000_000 + (u * 3 + n * 5) * DAY) for u in range(12) for n in range(10)]
    (folder / "log.csv").write_text("user,item,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(split=SplitConfig(**split), shards=shards))


def _with(dataset: PreparedDataset, **arrays: np.ndarray) -> PreparedDataset:
    first = dataclasses.replace(dataset.shards[0], **arrays)
    return PreparedDataset(dataset.path, dataset.manifest, [first, *dataset.shards[1:]])


@pytest.mark.parametrize("shards", [1, 3])
def test_a_clean_split_by_time_is_silent(shards: int, tmp_path: Path) -> None:
    report = leakage_report(_prepare(tmp_path, shards, protocol="time"))
    assert report["declared_leaky"] is False
    assert report["training_events_after_a_cut"] == 0


def test_a_future_event_in_training_is_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="time")
    shard = dataset.shards[0]
    later = np.flatnonzero(shard.train_end < shard.valid_end)[0]
    train_end = np.array(shard.train_end)
    train_end[later] += 1
    with pytest.raises(DataError, match="leakage: future event: the train part"):
        leakage_report(_with(dataset, train_end=train_end))


def test_a_tie_across_the_cut_is_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="time")
    shard = dataset.shards[0]
    user = np.flatnonzero(shard.train_end > 0)[0]
    times = np.array(shard.times)
    times[shard.offsets[user] + shard.train_end[user] - 1] = dataset.manifest["cuts_us"][0]
    with pytest.raises(DataError, match="leakage: future event: the train part"):
        leakage_report(_with(dataset, times=times))


def test_a_test_event_before_its_cut_is_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="time")
    shard = dataset.shards[0]
    user = np.flatnonzero(shard.train_end < shard.valid_end)[0]
    valid_end = np.array(shard.valid_end)
    valid_end[user] -= 1
    with pytest.raises(DataError, match="leakage: future event: the test part"):
        leakage_report(_with(dataset, valid_end=valid_end))


def test_a_duplicated_user_is_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="loo")
    users = np.array(dataset.shards[0].users)
    users[3] = users[7]
    with pytest.raises(DataError, match="leakage: duplicated user: user index 8 occurs 2 times"):
        leakage_report(_with(dataset, users=users))


def test_a_vocabulary_from_the_future_is_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="time")
    items, last = np.array(dataset.shards[0].items), dataset.num_items
    swapped = np.where(items == 1, last, np.where(items == last, 1, items)).astype(np.int32)
    assert dataset.train_counts()[last] == 0
    with pytest.raises(DataError, match="leakage: vocabulary from the future"):
        leakage_report(_with(dataset, items=swapped))


def test_events_out_of_order_are_found(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="loo")
    times = np.array(dataset.shards[0].times)
    times[[4, 5]] = times[[5, 4]]
    with pytest.raises(DataError, match="leakage: events out of order: user index 1"):
        leakage_report(_with(dataset, times=times))


@pytest.mark.parametrize(("name", "value"), [("train_end", -1), ("train_end", 11), ("valid_end", 11), ("valid_end", 0)])
def test_a_misplaced_cut_is_found(name: str, value: int, tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, protocol="loo")
    array = np.array(getattr(dataset.shards[0], name))
    array[2] = value
    with pytest.raises(DataError, match="leakage: misplaced cut: user index 3"):
        leakage_report(_with(dataset, **{name: array}))


@pytest.mark.parametrize("protocol", ["loo", "loo-novalid", "ratio"])
def test_what_a_leaky_protocol_sees_is_counted_by_definition(protocol: str, tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, shards=2, protocol=protocol)
    report, slices, queries = leakage_report(dataset), dataset.train_slices(), dataset.queries("test")
    train = [(int(slices.user[i]), int(t)) for i in range(len(slices)) for t in slices.gather(i)[1]]  # type: ignore[union-attr]  # order is time
    assert queries.query_time is not None
    asked = list(zip(queries.user.tolist(), queries.query_time.tolist(), strict=True))
    after = [any(t > when and user != who for who, when in asked) for user, t in train]
    later = [sum(t > when for _, t in train) / len(train) for _, when in asked]
    assert report["declared_leaky"] is True
    assert report["test"]["training_share_after_a_target"] == pytest.approx(np.mean(after), abs=1e-6)
    assert report["test"]["mean_training_share_after_target"] == pytest.approx(np.mean(later), abs=1e-6)
    assert 0 < np.mean(later) < 1


def test_without_times_the_report_says_that_it_cannot_know(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3 4\n2 3 4 5\n")
    report = prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig()).manifest["leakage"]
    assert report == {"declared_leaky": True, "times_known": False, "filters_count_all_events": False}

"""What the manifest says, held against the arrays and against itself."""

from pathlib import Path
from typing import Any

import pytest

from recsys.features.leakage import find_leaks
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from tests.features.leakage.planted import (
    Arrays,
    Manifest,
    Prepared,
    changed,
    names,
)


@pytest.mark.parametrize("cuts", [[2, 1], [1, 2, 3], [1], None, [], "12"])
def test_a_split_by_time_has_two_ascending_cuts(prepared: Prepared, cuts: Any) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        manifest["cuts_us"] = cuts

    assert names(changed(prepared("time"), change)) == {"misplaced cut"}


@pytest.mark.parametrize(
    ("protocol", "found"), [("time", {"changed manifest", "misplaced cut"}), ("loo", {"changed manifest"})]
)
@pytest.mark.parametrize("is_listed", [True, False])
def test_times_under_another_order_are_found(
    prepared: Prepared, protocol: str, found: set[str], is_listed: bool
) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        manifest["order"] = "rows"
        if not is_listed:
            manifest["files"] = {name: n for name, n in manifest["files"].items() if not name.endswith("times.npy")}

    assert names(changed(prepared(protocol, 2), change)) == found


def test_an_order_by_time_lists_the_times_of_every_shard(prepared: Prepared) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards, manifest["files"]["shards/00001/times.npy"]

    assert names(changed(prepared("loo", 2), change)) == {"changed manifest"}


@pytest.mark.parametrize(
    ("group", "name"), [("counts", "events"), ("test", "targets"), ("train", "users"), ("valid", "cold_users")]
)
def test_a_count_that_the_arrays_do_not_give_is_found(prepared: Prepared, group: str, name: str) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        (manifest["counts"] if group == "counts" else manifest["splits"][group])[name] += 1

    assert names(changed(prepared("time"), change)) == {"changed manifest"}


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("counts", "rejected", 5),
        ("counts", "good", 3),
        ("counts", "lines", 10_000_000),
        ("counts", "rejected_by_reason", {"empty line": 5}),
        ("counts", "events_read", 1),
        ("leakage", "declared_leaky", True),
        ("leakage", "times_known", False),
        ("ids", "items", "other"),
    ],
)
def test_facts_of_the_manifest_agree_with_each_other(prepared: Prepared, group: str, name: str, value: Any) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        assert manifest[group][name] != value
        manifest[group][name] = value

    dataset = changed(prepared("time"), change)
    assert names(dataset) == {"changed manifest"}
    (leak,) = find_leaks(dataset)
    assert "facts of the manifest that do not agree" in str(leak)


def test_a_declared_leaky_dataset_that_denies_it_is_found(prepared: Prepared) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del shards
        manifest["leakage"]["declared_leaky"] = False

    assert names(changed(prepared("loo"), change)) == {"changed manifest"}


def test_a_row_without_events_is_found(prepared: Prepared) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        """The second user gets the first one's events too."""
        del manifest
        arrays = shards[0]
        arrays["offsets"][1] = arrays["offsets"][0]
        arrays["train_end"][0] = arrays["valid_end"][0] = 0

    assert "user without events" in names(changed(prepared("loo"), change))


@pytest.mark.parametrize("prefix", ["", "-", "u", "a long user name "])
def test_users_of_exchanged_shards_are_found(prefix: str, tmp_path: Path) -> None:
    rows = [f"{prefix}{user + 1},{item},{1_500_000_000 + 60 * item}" for user in range(20) for item in range(5)]
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "\n".join(rows) + "\n")
    config = PrepareConfig(split=SplitConfig(protocol="loo"), shards=3)
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    assert names(dataset) == set()

    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del manifest
        shards[0], shards[1] = shards[1], shards[0]

    assert names(changed(dataset, change)) == {"misplaced user"}


@pytest.mark.parametrize(("factor", "is_found"), [(1, False), (100, False), (1000, True)])
def test_another_unit_is_a_factor_of_a_thousand_away(prepared: Prepared, factor: int, is_found: bool) -> None:
    def change(shards: list[Arrays], manifest: Manifest) -> None:
        del manifest
        shards[0]["times"] //= factor

    assert ("times of another unit" in names(changed(prepared("loo", 3), change))) is is_found

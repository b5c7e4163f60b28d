"""Planted leaks are found by name, with arrays, manifest and split hash made to agree; their clean twins are silent."""

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys import config as configs
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import find_leaks, leakage_report
from recsys.features.preparation.append import append
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.features.splits import split_hash
from recsys.features.vocabulary import Vocabulary

DAY = 86_400
Arrays = dict[str, Any]
Manifest = dict[str, Any]
Change = Callable[[list[Arrays], Manifest], None]
Prepared = Callable[..., PreparedDataset]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A log of 24 users and 40 items with many equal times, by any protocol and number of shards."""
    folder = tmp_path_factory.mktemp("leakage")
    rows = [(u, (u * 7 + n * n) % 40, 1_500_000_000 + (u * 3 + n * 5) % 61 * DAY) for u in range(24) for n in range(10)]
    rows += [(u, 40 + u % 5, 1_500_000_000 + (62 + u % 7) * DAY) for u in range(24)]
    rows.sort(key=lambda row: (row[0], row[2]))
    (folder / "log.csv").write_text("user,item,ts\n" + "".join(f"u{u},{i},{t}\n" for u, i, t in rows))

    def make(protocol: str = "time", shards: int = 1, **split: Any) -> PreparedDataset:
        out = folder / f"{protocol}-{shards}-{'-'.join(map(str, split.values()))}"
        config = SplitConfig(protocol=protocol, **split)  # type: ignore[arg-type]  # the tests name known ones
        return prepare(folder / "log.csv", out, PrepareConfig(split=config, shards=shards))

    return make


def changed(dataset: PreparedDataset, change: Change, *, sealed: bool = True) -> PreparedDataset:
    """The dataset after `change(arrays of each shard, manifest)`, its split hash made to fit unless told otherwise."""
    arrays = [{f.name: np.array(getattr(s, f.name)) for f in dataclasses.fields(s)} for s in dataset.shards]
    manifest = copy.deepcopy(dataset.manifest)
    change(arrays, manifest)
    shards = [dataclasses.replace(s, **a) for s, a in zip(dataset.shards, arrays, strict=True)]
    found = PreparedDataset(Path(dataset.path), manifest, shards)
    if sealed:
        manifest["split_hash"] = split_hash(found)
    return found


def stored(ids: list[bytes], kind: str) -> Vocabulary:
    """A vocabulary of these very bytes, as a faulty preparation might write it."""
    offsets = np.cumsum([0, *(len(raw) for raw in ids)])
    return Vocabulary(np.frombuffer(b"".join(ids), np.uint8), offsets, kind)  # type: ignore[arg-type]  # one of two


def first_row(arrays: Arrays, is_true: Callable[[Arrays, int], bool]) -> tuple[int, slice]:
    """The first row of the first shard for which this holds, and its events."""
    row = next(row for row in range(len(arrays["users"])) if is_true(arrays, row))
    return row, slice(int(arrays["offsets"][row]), int(arrays["offsets"][row + 1]))


def has_train_and_valid(arrays: Arrays, row: int) -> bool:
    return bool(0 < arrays["train_end"][row] < arrays["valid_end"][row])


def names(dataset: PreparedDataset) -> set[str]:
    return {leak.name for leak in find_leaks(dataset)}


def nothing(shards: list[Arrays], manifest: Manifest) -> None:
    del shards, manifest


def later_cut(shards: list[Arrays], manifest: Manifest) -> None:
    """One user trains on an event after the cut."""

    def is_after(arrays: Arrays, row: int) -> bool:
        place = arrays["offsets"][row] + arrays["train_end"][row]
        return has_train_and_valid(arrays, row) and arrays["times"][place] > manifest["cuts_us"][0]

    row, _ = first_row(shards[0], is_after)
    shards[0]["train_end"][row] += 1


def earlier_cut(shards: list[Arrays], manifest: Manifest) -> None:
    """One user's last training event counts as a target."""
    del manifest
    row, _ = first_row(shards[0], has_train_and_valid)
    shards[0]["train_end"][row] -= 1


def tie(shards: list[Arrays], manifest: Manifest) -> None:
    """An event at the very time of the cut is trained on; others of that time are targets."""

    def is_at_cut(arrays: Arrays, row: int) -> bool:
        place = arrays["offsets"][row] + arrays["train_end"][row]
        return has_train_and_valid(arrays, row) and arrays["times"][place] == manifest["cuts_us"][0]

    arrays, row = next(
        (arrays, row) for arrays in shards for row in range(len(arrays["users"])) if is_at_cut(arrays, row)
    )
    arrays["train_end"][row] += 1


def tie_of_an_earlier_target(shards: list[Arrays], manifest: Manifest) -> None:
    """The last training timestamp is split: one of its events is a target."""
    latest = max(times[times < manifest["cuts_us"][0]].max() for times in (a["times"] for a in shards))
    arrays, row = next(
        (arrays, row)
        for arrays in shards
        for row in range(len(arrays["users"]))
        if arrays["train_end"][row] > 1
        and arrays["times"][arrays["offsets"][row] + arrays["train_end"][row] - 1] == latest
    )
    arrays["train_end"][row] -= 1


def duplicated_row(shards: list[Arrays], manifest: Manifest) -> None:
    """Two rows of one shard are one user."""
    del manifest
    shards[0]["users"][2] = shards[0]["users"][1]


def user_in_two_shards(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[-1]["users"][0] = shards[0]["users"][0]


def items_of_the_future_first(shards: list[Arrays], manifest: Manifest) -> None:
    """The first and the last item change their indices."""
    last = manifest["counts"]["items"]
    for arrays in shards:
        items = arrays["items"]
        arrays["items"] = np.where(items == 1, last, np.where(items == last, 1, items)).astype(np.int32)


def items_after_the_cut_permuted(shards: list[Arrays], manifest: Manifest) -> None:
    last = manifest["counts"]["items"]
    for arrays in shards:
        items = arrays["items"]
        arrays["items"] = np.where(items == last - 1, last, np.where(items == last, last - 1, items)).astype(np.int32)


def item_without_events(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    for arrays in shards:
        arrays["items"][arrays["items"] == 3] = 4


def item_beyond_the_vocabulary(shards: list[Arrays], manifest: Manifest) -> None:
    shards[0]["items"][5] = manifest["counts"]["items"] + 1


def padding_among_the_items(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["items"][5] = 0


def swapped_times(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    row, events = first_row(shards[0], lambda a, r: a["train_end"][r] > 1)
    times = shards[0]["times"]
    times[[events.start, events.start + 1]] = times[[events.start + 1, events.start]]


def train_end_beyond(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["train_end"][0] = 99


def offset_by_one(shards: list[Arrays], manifest: Manifest) -> None:
    """Every user but the first begins one event late."""
    del manifest
    shards[0]["offsets"][1:-1] += 1


def other_unit(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    shards[0]["times"] //= 1000


def later_cuts_told(shards: list[Arrays], manifest: Manifest) -> None:
    """The manifest says a cut between two timestamps, where no event stands."""
    del shards
    manifest["cuts_us"][0] -= 1


def much_later_cuts_told(shards: list[Arrays], manifest: Manifest) -> None:
    del shards
    manifest["cuts_us"][0] += 3 * DAY * 1_000_000


def cuts_moved_together(shards: list[Arrays], manifest: Manifest) -> None:
    """All users and the manifest agree on a cut other than the shares give."""
    cut = manifest["cuts_us"][0] + 2 * DAY * 1_000_000
    manifest["cuts_us"][0] = min(cut, manifest["cuts_us"][1])
    for arrays in shards:
        for row in range(len(arrays["users"])):
            events = arrays["times"][arrays["offsets"][row] : arrays["offsets"][row + 1]]
            arrays["train_end"][row] = int((events < manifest["cuts_us"][0]).sum())


def times_of_whole_weeks(shards: list[Arrays], manifest: Manifest) -> None:
    del manifest
    week = 7 * DAY * 1_000_000
    for arrays in shards:
        arrays["times"] = arrays["times"] // week * week


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


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("protocol", ["time", "loo", "loo-novalid", "ratio"])
def test_the_unchanged_dataset_is_silent_by_every_protocol(prepared: Prepared, protocol: str, shards: int) -> None:
    dataset = prepared(protocol, shards)
    assert find_leaks(dataset) == []
    assert find_leaks(changed(dataset, nothing)) == []
    assert dataset.manifest["leakage"]["declared_leaky"] is (protocol != "time")


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


EVENTS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(1_400_000_000, 1_400_000_030)), min_size=8, max_size=60
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=EVENTS,
    protocol=st.sampled_from(["time", "loo", "loo-novalid", "ratio"]),
    shards=st.integers(1, 3),
    valid_share=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_whatever_prepare_makes_of_a_log_is_silent(
    rows: list[tuple[int, int, int]], protocol: str, shards: int, valid_share: float, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    split = SplitConfig(protocol=protocol, valid_share=valid_share, test_share=0.2)  # type: ignore[arg-type]  # one of the four
    config = PrepareConfig(split=split, shards=shards)
    told, dataset = "", None
    try:
        dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    except DataError as error:
        told = str(error)
    # A log that is too small for its split is refused, and not for a leak.
    assert "leakage" not in told
    assert dataset is None or find_leaks(dataset) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(EVENTS, min_size=2, max_size=4),
    protocol=st.sampled_from(["time", "loo", "ratio"]),
    shards=st.integers(1, 2),
    repeats=st.sampled_from(["keep", "collapse", "first", "last"]),
    min_item_events=st.sampled_from([1, 3]),
)
def test_whatever_appends_and_policies_make_of_logs_is_silent(
    days: list[list[tuple[int, int, int]]],
    protocol: str,
    shards: int,
    repeats: str,
    min_item_events: int,
    tmp_path: Path,
) -> None:
    config = configs.load(
        PrepareConfig,
        {
            "split": {"protocol": protocol, "test_share": 0.2},
            "events": {"repeats": repeats},
            "filters": {"min_item_events": min_item_events},
            "shards": shards,
        },
    )
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    told = ""
    try:
        for day, rows in enumerate(days):
            lines = "".join(f"u{u},{i + day},{t + 5 * day}\n" for u, i, t in rows)
            (tmp_path / f"{day}.csv").write_text("user,item,ts\n" + lines)
            if day == 0:
                prepare(tmp_path / "0.csv", tmp_path / "data", config)
            else:
                append(tmp_path / f"{day}.csv", tmp_path / "data")
            assert find_leaks(PreparedDataset.open(tmp_path / "data")) == []
    except DataError as error:
        told = str(error)
    assert "leakage" not in told

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.batches import TrainBatches
from recsys.features.dataset import PreparedDataset, Split
from recsys.features.prepare import FilterConfig, PrepareConfig, SplitConfig, prepare
from recsys.features.slices import flat_items

START = 1_500_000_000
Log = list[tuple[int, int, int]]

# User 1 is known early, 2 spans all cuts, 3 comes in the test window alone.
LOG: Log = [(1, 10 + n % 3, n) for n in range(8)] + [(2, 20 + n, 7 + n) for n in range(10)] + [(3, 10, 16), (3, 20, 17)]


def _prepare(folder: Path, log: Log, **config: Any) -> PreparedDataset:
    source = folder / "log.csv"
    source.write_text("user,item,ts\n" + "".join(f"{u},{i},{START + t}\n" for u, i, t in log))
    shards = config.pop("shards", None)
    return prepare(source, folder / "data", PrepareConfig(split=SplitConfig(**config), shards=shards))


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return _prepare(tmp_path, LOG, protocol="time")


def _parts(dataset: PreparedDataset, split: Split) -> dict[Any, tuple[list[Any], list[Any]]]:
    """Raw user id -> raw ids of history and of targets."""
    queries = dataset.queries(split)
    users = dataset.users.decode(queries.user)
    decode = dataset.items.decode
    return {user: (decode(queries.gather(i)[0]), decode(queries.targets(i))) for i, user in enumerate(users)}


@settings(max_examples=25, deadline=None)
@given(
    log=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 30)), min_size=12, max_size=60),
    protocol=st.sampled_from(["loo", "loo-novalid", "ratio", "time"]),
    target=st.sampled_from(["next", "all"]),
    shards=st.sampled_from([1, 3]),
)
def test_histories_and_targets_are_what_the_protocol_says(
    log: Log, protocol: Any, target: Any, shards: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        dataset = _prepare(tmp_path_factory.mktemp("d"), log, protocol=protocol, target=target, shards=shards)
    except DataError:
        return
    cuts = [cut // 10**6 - START for cut in dataset.manifest["cuts_us"] or (0, 0)]
    events: dict[int, Log] = {}
    for event in sorted(log, key=lambda e: e[2]):
        events.setdefault(event[0], []).append(event)
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        wanted, num_cold = {}, 0
        for user, own in events.items():
            before, part = _expected(own, protocol, split, cuts)
            if part and before:
                targets = [i for _, i, _ in (part[:1] if target == "next" else part)]
                wanted[user] = ([i for _, i, _ in before], list(dict.fromkeys(targets)))
            num_cold += bool(part and not before)
        assert _parts(dataset, split) == wanted
        assert dataset.queries(split).num_cold == num_cold
    assert dataset.num_events == len(log)
    dataset.verify()


def _expected(own: Log, protocol: str, split: Split, cuts: list[int]) -> tuple[Log, Log]:
    n = len(own)
    if protocol == "time":
        ends = [sum(t < cuts[0] for _, _, t in own), sum(t < cuts[1] for _, _, t in own)]
    elif protocol == "loo-novalid":
        ends = [n - 1, n - 1] if n >= 2 else [n, n]
    elif protocol == "loo" or n < 10:
        ends = [n - 2, n - 1] if n >= 3 else [n, n]
    else:
        ends = [n - 2 * (n // 10), n - n // 10]
    return (own[: ends[0]], own[ends[0] : ends[1]]) if split == "valid" else (own[: ends[1]], own[ends[1] :])


def test_query_times_are_the_window_or_the_target(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, LOG, protocol="time")
    cut = dataset.manifest["cuts_us"][1]
    times = dataset.queries("test").query_time
    assert times is not None
    assert times.tolist() == [cut] * len(times)
    queries = _prepare(tmp_path, LOG, protocol="loo").queries("test")
    assert queries.query_time is not None
    for i in range(len(queries)):
        history, first = queries.gather(i)[1], int(queries.query_time[i])
        stored = dataset.shards[0].times
        assert history is not None
        assert stored is not None
        assert history[-1] <= first == stored[queries.target_start[i]]


def test_cold_users_are_counted_and_left_out(dataset: PreparedDataset) -> None:
    queries = dataset.queries("test")
    assert queries.num_cold == 1
    assert 3 not in dataset.users.decode(queries.user)


def test_flat_targets_equal_the_targets_of_each_query(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, LOG, protocol="ratio", target="all", test_share=0.4, shards=3)
    queries = dataset.queries("test")
    for i in range(len(queries)):
        flat = queries.target_items[queries.target_offsets[i] : queries.target_offsets[i + 1]]
        assert flat.tolist() == queries.targets(i).tolist()
    assert (
        len(queries.target_items) == queries.target_offsets[-1] == 3 + 4
    )  # of 8 and 10; the user with two events only trains


def test_training_counts_and_slices_agree(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, LOG, protocol="time", shards=2)
    slices = dataset.train_slices()
    assert len(slices) == dataset.num_users == 3
    trained = np.concatenate([slices.gather(i)[0] for i in range(len(slices))])
    assert len(trained) == slices.lengths.sum()
    assert dataset.train_counts().tolist() == np.bincount(trained, minlength=dataset.num_items + 1).tolist()
    assert dataset.train_counts()[0] == 0


@pytest.mark.parametrize(
    ("protocol", "target"), [("loo", "next"), ("ratio", "next"), ("time", "next"), ("time", "all")]
)
def test_the_number_of_shards_changes_no_order(tmp_path: Path, protocol: Any, target: Any) -> None:
    log = [(user, (user * step) % 23, 100 * step + user % 7) for user in range(1, 40) for step in range(1, 9)]
    for n in (1, 5):
        (tmp_path / str(n)).mkdir()
    one, five = (_prepare(tmp_path / str(n), log, protocol=protocol, target=target, shards=n) for n in (1, 5))
    assert len(five.shards) == 5
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        ours, theirs = one.queries(split), five.queries(split)
        assert ours.user.tolist() == theirs.user.tolist() == sorted(ours.user)
        assert ours.target_items.tolist() == theirs.target_items.tolist()
        assert flat_items(ours).tolist() == flat_items(theirs).tolist()
        assert ours.query_time is not None
        assert theirs.query_time is not None
        assert ours.query_time.tolist() == theirs.query_time.tolist()
    assert flat_items(one.train_slices()).tolist() == flat_items(five.train_slices()).tolist()
    plans = [list(TrainBatches(data, max_len=5, tokens_per_batch=20, seed=0).epoch(1)) for data in (one, five)]
    assert [batch.values.tolist() for batch in plans[0]] == [batch.values.tolist() for batch in plans[1]]


def test_items_known_at_the_cut_are_a_prefix(dataset: PreparedDataset) -> None:
    known = np.flatnonzero(dataset.train_counts())
    assert known.tolist() == list(range(1, len(known) + 1))
    assert len(known) < dataset.num_items


def test_the_protocol_string_names_all_that_matters(dataset: PreparedDataset) -> None:
    text = dataset.protocol_string("test", "exclude")
    hashes = f"V={dataset.num_items}/data={dataset.data_hash}/split={dataset.split_hash}"
    assert text == f"time/all/full-rank/exclude-seen(repeat=miss)/ties=expected/{hashes}/test/n=1"
    assert "/keep-seen/" in dataset.protocol_string("valid", "keep")
    with pytest.raises(ValueError, match="seen='maybe'"):
        dataset.protocol_string("test", "maybe")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="split='train': wanted valid or test"):
        dataset.queries("train")  # type: ignore[arg-type]  # what is tested


def test_arrays_are_mapped_and_typed(dataset: PreparedDataset) -> None:
    shard = PreparedDataset.open(dataset.path).shards[0]
    assert isinstance(shard.items, np.memmap)
    assert shard.times is not None
    assert str(shard.items.dtype) == "int32"
    assert {str(a.dtype) for a in (shard.offsets, shard.users, shard.times, shard.train_end)} == {"int64"}


def test_a_log_without_times_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("7 1 2 3\n8 3 2 1\n")
    dataset = prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig())
    assert dataset.queries("test").query_time is None
    assert dataset.queries("test").gather(0)[1] is None
    assert not list(dataset.path.rglob("times.npy"))


@pytest.mark.parametrize("name", ["users", "offsets", "items", "times", "train_end", "valid_end"])
@pytest.mark.parametrize("harm", ["cut", "gone", "type", "length"])
def test_a_damaged_array_is_one_clear_line(name: str, harm: str, dataset: PreparedDataset) -> None:
    path = dataset.path / "shards" / "00000" / f"{name}.npy"
    array = np.load(path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "gone":
        path.unlink()
    elif harm == "type":
        np.save(path, array.astype(np.float32 if array.dtype == np.int32 else np.float64))
    else:
        np.save(path, array[:-1])
        manifest = dataset.manifest | {"files": {}}
        (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"{name}|do not fit each other") as caught:
        PreparedDataset.open(dataset.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["items", "items_rejected", "rejected", "held_back", "shards/00000/append"])
def test_any_byte_of_any_table_is_found_by_verify(name: str, tmp_path: Path) -> None:
    rows = "".join(f"{user},{item},{item},view\n" for user in range(3) for item in range(user, 6))
    (tmp_path / "log.csv").write_text(f"user,item,position,event_type\n{rows}")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item},t{item}\n" for item in range(6)))
    config = PrepareConfig(items=tmp_path / "items.csv", filters=FilterConfig(min_item_events=2))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    dataset.verify()
    path = tmp_path / "data" / f"{name}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"{name}\.parquet: its bytes are not those that were prepared"):
        PreparedDataset.open(dataset.path).verify()
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}\.parquet: its bytes are not those that were prepared"):
        PreparedDataset.open(dataset.path).verify()
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    del manifest["tables"]
    (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    PreparedDataset.open(dataset.path).verify()  # an older version's, which kept no hash of tables


def test_a_flipped_byte_is_found_by_verify(dataset: PreparedDataset) -> None:
    path = dataset.path / "shards" / "00000" / "items.npy"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="a byte differs"):
        PreparedDataset.open(dataset.path).verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"manifest\.json: damaged"),
        ("[]", "not the manifest of a prepared dataset"),
        ('{"format": "other"}', "not the manifest of a prepared dataset"),
        ('{"format": "recsys-dataset", "format_version": 99}', "format_version=99, this version reads 1"),
        ('{"format": "recsys-dataset", "format_version": 1}', r"manifest\.json: damaged, 'files' is missing"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_clear_line(text: str, message: str, dataset: PreparedDataset) -> None:
    (dataset.path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=message):
        PreparedDataset.open(dataset.path)


def test_a_folder_without_a_dataset_is_named_with_the_remedy(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError, match="recsys prepare --source"):
            PreparedDataset.open(path)


def test_opening_needs_numpy_and_the_standard_library_alone(dataset: PreparedDataset) -> None:
    code = (
        "import sys\n"
        "class Wall:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in {*sys.stdlib_module_names, 'numpy', 'recsys'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from recsys.features.dataset import PreparedDataset\n"
        "d = PreparedDataset.open(sys.argv[1])\n"
        "d.protocol_string('test', 'exclude'), d.items.encode(d.items.decode([1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(dataset.path)], check=True)


def test_a_dataset_can_be_moved(dataset: PreparedDataset, tmp_path: Path) -> None:
    shutil.move(dataset.path, tmp_path / "elsewhere")
    assert PreparedDataset.open(tmp_path / "elsewhere").num_events == len(LOG)


def test_flat_items_keep_the_order_of_the_slices_over_shards(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{u} {u} {u + 1} {u + 2} {u + 3}\n" for u in range(1, 40)))
    config = PrepareConfig(split=SplitConfig(protocol="loo"), shards=3)
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", config)
    slices = dataset.train_slices()
    assert len(dataset.shards) == 3
    assert flat_items(slices).tolist() == [item for i in range(len(slices)) for item in slices.gather(i)[0].tolist()]


def test_an_item_that_follows_twice_is_one_target(tmp_path: Path) -> None:
    log = [(user, 1 + n % 4, n) for user in range(1, 6) for n in range(16)] + [
        (9, 1, 1),
        *((9, 7, 14 + n) for n in range(2)),
    ]
    dataset = _prepare(tmp_path, sorted(log, key=lambda row: row[2]), protocol="time")
    queries = dataset.queries("test")
    for i in range(len(queries)):
        raw = queries.shards[0].items[queries.target_start[i] : queries.target_end[i]].tolist()
        assert queries.targets(i).tolist() == list(dict.fromkeys(raw))
    assert queries.target_offsets[-1] == len(queries.target_items) < (queries.target_end - queries.target_start).sum()

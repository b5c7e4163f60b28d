"""A prepared dataset: every user's events in order, and the cuts that split them, memory-mapped.

A folder: `manifest.json`, `vocabulary/`, `shards/00000/{users,offsets,items,times,train_end,valid_end}.npy`,
`rejected.parquet`, optional `items.parquet` and side columns: `shards/00000/event_types.npy`, `item_categories.npy`,
`item_vectors.npy`. Of a user's events [0, train_end) trains, [train_end, valid_end) validates and the rest tests. Needs
numpy and the standard library alone.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.arrays import load_array
from recsys.features.manifest import check_files, hash_arrays, hash_tables, is_side_column, read_manifest
from recsys.features.slices import Int32s, Int64s, Queries, Shard, Slices, ranges
from recsys.features.vocabulary import Vocabulary

__all__ = ["PreparedDataset", "Queries", "Shard", "Slices"]


Order = Literal["time", "position", "rows"]
Protocol = Literal["loo", "loo-novalid", "time", "ratio"]
Target = Literal["next", "all"]
Split = Literal["valid", "test"]

SHARD_DTYPES: dict[str, npt.DTypeLike] = {
    "users": np.int64,
    "offsets": np.int64,
    "items": np.int32,
    "times": np.int64,
    "train_end": np.int64,
    "valid_end": np.int64,
    "event_types": np.int32,
}
_PREPARE_ITEMS = "prepare it again with a table of items that has them: --items TABLE, and {}=COLUMN"


class PreparedDataset:
    """A folder that `prepare` wrote, opened for reading."""

    def __init__(self, path: Path, manifest: dict[str, Any], shards: list[Shard]) -> None:
        self.path, self.manifest, self.shards = path, manifest, shards

    @classmethod
    def open(cls, path: str | Path) -> "PreparedDataset":
        """The prepared dataset in this folder, memory-mapped.

        Raises:
            DataError: the folder is missing, no prepared dataset, damaged, or of an unknown format version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        shards = [_open_shard(folder / "shards" / f"{n:05d}", manifest) for n in range(manifest["num_shards"])]
        return cls(folder, manifest, shards)

    def __repr__(self) -> str:
        counts = f"{self.num_users} users, {self.num_items} items, {self.num_events} events"
        return f"PreparedDataset({str(self.path)!r}, {counts}, {self.protocol})"

    @property
    def num_items(self) -> int:
        """V: the item indices are 1..V."""
        return int(self.manifest["counts"]["items"])

    @property
    def num_users(self) -> int:
        """The user indices are 1..num_users."""
        return int(self.manifest["counts"]["users"])

    @property
    def num_events(self) -> int:
        """Events of all users and all parts."""
        return int(self.manifest["counts"]["events"])

    @property
    def order(self) -> Order:
        """What put the events in order."""
        return cast(Order, self.manifest["order"])

    @property
    def protocol(self) -> Protocol:
        """How the events are split."""
        return cast(Protocol, self.manifest["protocol"])

    @property
    def target(self) -> Target:
        """Which events of a split's part are targets: the next one, or all."""
        return cast(Target, self.manifest["target"])

    @property
    def data_hash(self) -> str:
        """First 12 hex digits of the sha256 over all `.npy` bytes but side columns, in the order of their paths."""
        return str(self.manifest["data_hash"])

    @property
    def split_hash(self) -> str:
        """First 12 hex digits of the sha256 over protocol, target rule and cuts."""
        return str(self.manifest["split_hash"])

    @property
    def side_hash(self) -> str:
        """As `data_hash`, over the side columns; empty where there are none."""
        return str(self._side.get("hash", ""))

    @property
    def event_type_names(self) -> tuple[str, ...]:
        """Names of the event types, number 1 first; empty where the log has none."""
        return tuple(self._side.get("event_types", ()))

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names of the items' categories, number 1 first; empty where there are none."""
        return tuple((self._side.get("categories") or {}).get("names", ()))

    @property
    def vector_width(self) -> int:
        """Numbers in each item's vector; 0 where there are none."""
        return int((self._side.get("vectors") or {}).get("width", 0))

    @functools.cached_property
    def item_categories(self) -> Int32s:
        """Number of each item's category, (V+1,) int32, memory-mapped; 0 where it has none.

        Raises:
            DataError: the dataset has no categories, or they are damaged.
        """
        if not self.category_names:
            raise DataError(f"{self.path}: has no categories; {_PREPARE_ITEMS.format('item_category')}")
        return self._of_items(load_array(self.path / "item_categories.npy", np.int32))

    @functools.cached_property
    def item_vectors(self) -> npt.NDArray[np.float32]:
        """Vector of each item, (V+1, width) float32, memory-mapped; zeros where it has none.

        Raises:
            DataError: the dataset has no vectors, or they are damaged.
        """
        if not self.vector_width:
            raise DataError(f"{self.path}: has no item vectors; {_PREPARE_ITEMS.format('item_vectors')}")
        return self._of_items(load_array(self.path / "item_vectors.npy", np.float32, rank=2))

    @functools.cached_property
    def items(self) -> Vocabulary:
        """Raw item ids by index."""
        return Vocabulary.load(self.path / "vocabulary", "items")

    @functools.cached_property
    def users(self) -> Vocabulary:
        """Raw user ids by index."""
        return Vocabulary.load(self.path / "vocabulary", "users")

    def train_slices(self) -> Slices:
        """The training part of every user, empty ones included, by user index: shards change no order."""
        start = self._flat(lambda shard: shard.offsets[:-1])
        end = start + self._flat(lambda shard: shard.train_end)
        order = self._by_user()
        return Slices(
            shards=self.shards,
            shard=self._shard_numbers()[order],
            start=start[order],
            end=end[order],
            user=self._users()[order],
        )

    def queries(self, split: Split) -> Queries:
        """Each user with a history and at least one target in this split, by user index: shards change no order.

        Args:
            split: `valid` asks after the training part; `test` asks after training and validation part.

        Raises:
            ValueError: another split.
        """
        start = self._flat(lambda shard: shard.offsets[:-1])
        begin, end = (start + length for length in self._part(split))
        has_target, has_history = end > begin, begin > start
        order = self._by_user()
        rows = order[(has_target & has_history)[order]]
        shard, begin, end = self._shard_numbers()[rows], begin[rows], end[rows]
        return Queries(
            shards=self.shards,
            shard=shard,
            start=start[rows],
            end=begin,
            user=self._users()[rows],
            target_start=begin,
            target_end=begin + 1 if self.target == "next" else end,
            query_time=self._query_times(split, shard, begin),
            num_cold=int(np.sum(has_target & ~has_history)),
        )

    def train_counts(self) -> Int64s:
        """Events of each item in the training part, (V+1,) int64; column 0 is padding and stays 0."""
        counts = np.zeros(self.num_items + 1, np.int64)
        for shard in self.shards:
            starts = shard.offsets[:-1]
            position = ranges(starts, starts + shard.train_end)
            counts += np.bincount(shard.items[position], minlength=len(counts))
        return counts

    def protocol_string(self, split: Split, seen: Literal["exclude", "keep"]) -> str:
        """What a figure on this split means, in one line.

        Args:
            split: valid or test.
            seen: whether items of the history may be recommended again; excluded, a repeat counts as a miss.

        Raises:
            ValueError: another split or seen rule.
        """
        rules = {"exclude": "exclude-seen(repeat=miss)", "keep": "keep-seen"}
        if seen not in rules:
            raise ValueError(f"seen={seen!r}: wanted one of {', '.join(rules)}")
        number = len(self.queries(split))
        hashes = f"V={self.num_items}/data={self.data_hash}/split={self.split_hash}"
        return f"{self.protocol}/{self.target}/full-rank/{rules[seen]}/ties=expected/{hashes}/{split}/n={number}"

    def verify(self) -> None:
        """Read every array and table and compare with the manifest's hashes; older datasets have none of tables.

        Raises:
            DataError: a byte differs, or a table is missing or new.
        """
        found = self.found_hash()
        if found != self.data_hash:
            raise DataError(
                f"{self.path}: data hash {found}, wanted {self.data_hash}; a byte differs: prepare it again"
            )
        side = self.changed_side_columns()
        if side:
            raise DataError(f"{self.path}: a byte of its side columns ({side[0]}, …) differs: prepare it again")
        changed = self.changed_tables()
        if changed:
            raise DataError(f"{self.path / changed[0]}: its bytes are not those that were prepared; prepare it again")

    def found_hash(self) -> str:
        """The data hash of the bytes that lie there now, whatever the manifest tells."""
        return hash_arrays(self.path, [name for name in self.manifest["files"] if not is_side_column(name)])

    def changed_side_columns(self) -> list[str]:
        """Paths of the event types, categories and vectors, where their common hash is not what was prepared."""
        names = [name for name in self.manifest["files"] if is_side_column(name)]
        return names if names and hash_arrays(self.path, names) != self.side_hash else []

    def changed_tables(self) -> list[str]:
        """Paths of the tables that are not those that were prepared, in order; older datasets have no hash of any."""
        if "tables" not in self.manifest:
            return []
        told, tables = self.manifest["tables"], hash_tables(self.path)
        return sorted(name for name in {**tables, **told} if tables.get(name) != told.get(name))

    @property
    def _side(self) -> dict[str, Any]:
        """Datasets of older versions have none."""
        return cast(dict[str, Any], self.manifest.get("side", {}))

    def _of_items(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if len(array) != self.num_items + 1:
            raise DataError(
                f"{self.path}: a column of {len(array)} rows for {self.num_items} items; prepare the dataset again"
            )
        return array

    def _flat(self, column: Callable[[Shard], Int64s]) -> Int64s:
        return np.concatenate([np.asarray(column(shard), np.int64) for shard in self.shards])

    def _users(self) -> Int64s:
        return self._flat(lambda shard: shard.users)

    def _by_user(self) -> Int64s:
        """Rows of all shards in the order of their user indices."""
        return np.argsort(self._users(), kind="stable")

    def _shard_numbers(self) -> Int32s:
        return np.repeat(np.arange(len(self.shards), dtype=np.int32), [len(shard.users) for shard in self.shards])

    def _part(self, split: Split) -> tuple[Int64s, Int64s]:
        """Begin and end of the split's part, counted from each user's first event."""
        valid_end = self._flat(lambda shard: shard.valid_end)
        if split == "valid":
            return self._flat(lambda shard: shard.train_end), valid_end
        if split == "test":
            return valid_end, self._flat(lambda shard: np.diff(shard.offsets))
        raise ValueError(f"split={split!r}: wanted valid or test")

    def _query_times(self, split: Split, numbers: Int32s, begin: Int64s) -> Int64s | None:
        """When each question is asked: `begin` is its first target, in the shard of its number."""
        if self.order != "time":
            return None
        if self.target == "all" and self.protocol == "time":
            cut = self.manifest["cuts_us"][0 if split == "valid" else 1]
            return np.full(len(begin), cut, np.int64)
        times = np.empty(len(begin), np.int64)
        for number, shard in enumerate(self.shards):
            mine = numbers == number
            times[mine] = shard.times[begin[mine]]  # type: ignore[index]  # order is time
        return times


def _open_shard(folder: Path, manifest: dict[str, Any]) -> Shard:
    absent = {"times": manifest["order"] != "time", "event_types": not manifest.get("side", {}).get("event_types")}
    names = [name for name in SHARD_DTYPES if not absent.get(name, False)]
    arrays = {name: load_array(folder / f"{name}.npy", SHARD_DTYPES[name]) for name in names}
    users, events, offsets = len(arrays["users"]), len(arrays["items"]), arrays["offsets"]
    fits = len(offsets) == users + 1 and offsets[0] == 0 and offsets[-1] == events
    fits = fits and len(arrays["train_end"]) == len(arrays["valid_end"]) == users
    fits = fits and all(len(arrays[name]) == events for name in ("times", "event_types") if name in arrays)
    if not fits:
        raise DataError(f"{folder}: damaged, its arrays do not fit each other; prepare the dataset again")
    times = arrays.pop("times", None)
    return Shard(times=times, **arrays)

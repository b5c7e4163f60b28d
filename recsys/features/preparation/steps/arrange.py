"""One shard's rows, put into the order of their users and moments, with the policies that need that order applied."""

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.features.arrays import load_array
from recsys.features.preparation.policies import EventConfig, again, moment_order, repeated
from recsys.features.preparation.steps.sorting import codes_of
from recsys.features.slices import Int32s, Int64s, offsets_of


@dataclasses.dataclass(frozen=True)
class Part:
    """A shard that lies arranged in a folder; everything is read when it is asked for.

    Attributes:
        folder: where it lies.
        duplicates: events that repeat user, item, moment and type of another one and were kept.
        left_out: events by policy.
    """

    folder: Path
    duplicates: int
    left_out: Counter[str]

    @property
    def users(self) -> pl.Series:
        """(n,) raw user ids."""
        return pl.read_ipc(self.folder / "users.arrow")["user_id"]

    @property
    def items(self) -> pl.Series:
        """Raw item ids by the numbers in `item`."""
        return pl.read_ipc(self.folder / "items.arrow")["item_id"]

    @functools.cached_property
    def offsets(self) -> Int64s:
        """(n+1,) int64, where each user's events start."""
        return np.asarray(load_array(self.folder / "offsets.npy", np.int64))

    @property
    def item(self) -> Int32s:
        """(E,) int32, number of each event's item."""
        return load_array(self.folder / "item.npy", np.int32)

    @property
    def key(self) -> Int64s | None:
        """(E,) int64, time (us) or position of each event, or None where the rows are the order."""
        return self._optional("key", np.int64)

    @property
    def row(self) -> Int64s:
        """(E,) int64, number of each event in the source; below 0 it was there before."""
        return load_array(self.folder / "row.npy", np.int64)

    @property
    def kind(self) -> Int32s | None:
        """(E,) int32, number of each event's type, or None."""
        return self._optional("kind", np.int32)

    def _optional(self, name: str, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        path = self.folder / f"{name}.npy"
        return load_array(path, dtype) if path.is_file() else None


def arrange(frame: pl.DataFrame, events: EventConfig, folder: Path) -> Part:
    """The shard's events, user after user, in a folder of its own.

    Args:
        frame: `user_id`, `item_id`, `row`, and what there is of `key` and `kind`, in the order of the source.
        events: policies; those of types and weights were applied before.
        folder: where the arrays go.
    """
    folder.mkdir(parents=True)
    user, users = codes_of(frame["user_id"])
    key = frame["key"].to_numpy() if "key" in frame.columns else None
    order = moment_order(frame, user, key, events)
    user = user[order]
    item, items = codes_of(frame["item_id"])
    columns: dict[str, npt.NDArray[Any]] = {"item": item.astype(np.int32)[order], "row": frame["row"].to_numpy()[order]}
    if key is not None:
        columns["key"] = key[order]
    if "kind" in frame.columns:
        columns["kind"] = frame["kind"].to_numpy()[order]
    user, duplicates = _without_duplicates(user, columns, events)
    left_out = Counter({"duplicates": duplicates} if events.duplicates == "drop" and duplicates else {})
    unwanted = repeated(user, columns["item"], events.repeats)
    if unwanted.any():
        left_out["repeats"] = int(unwanted.sum())
        user = _without(user, columns, unwanted)
    for name, array in columns.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "offsets.npy", offsets_of(np.bincount(user, minlength=len(users))))
    users.to_frame("user_id").write_ipc(folder / "users.arrow", compression="uncompressed")
    items.to_frame("item_id").write_ipc(folder / "items.arrow", compression="uncompressed")
    return Part(folder, 0 if events.duplicates == "drop" else duplicates, left_out)


def _without_duplicates(user: Int64s, columns: dict[str, npt.NDArray[Any]], events: EventConfig) -> tuple[Int64s, int]:
    is_again = again(user, columns["item"], columns.get("key"), columns.get("kind"))
    count = int(is_again.sum())
    return (_without(user, columns, is_again) if events.duplicates == "drop" and count else user), count


def _without(user: Int64s, columns: dict[str, npt.NDArray[Any]], unwanted: npt.NDArray[np.bool_]) -> Int64s:
    for name in columns:
        columns[name] = columns[name][~unwanted]
    return user[~unwanted]

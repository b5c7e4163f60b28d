"""Which events count: by type, weight, duplicates, repeats, and how a user's events of one moment are ordered."""

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError
from recsys.features.preparation.steps.hashing import hash_ids, splitmix64
from recsys.features.preparation.steps.sorting import codes_of, order_by
from recsys.features.slices import Int64s

Duplicates = Literal["keep", "drop"]
Repeats = Literal["keep", "collapse", "first", "last"]
Ties = Literal["file", "item", "shuffle"]
Booleans = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventConfig:
    """Which events count, applied in this order; what is left out is counted by policy."""

    types: tuple[str, ...] | None = None  # event types that count; None: all
    min_weight: float | None = None  # lighter events (such as ratings below 4) are left out
    ties: Ties = "file"  # order of a user's events of one moment: as in the file, by item id, or a seeded shuffle
    duplicates: Duplicates = "keep"  # drop: same user, item, moment and type again
    repeats: Repeats = "keep"  # collapse: runs of one item; first, last: one event per user and item
    seed: int = 0

    def __post_init__(self) -> None:
        if self.types is not None and not self.types:
            raise ValueError("types=[]: wanted at least one event type, or null for all")
        if self.min_weight is not None and not np.isfinite(self.min_weight):
            raise ValueError(f"min_weight={self.min_weight}: wanted a finite number")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: wanted 0 to 2^63 - 1")


def check_policies(events: EventConfig, columns: dict[str, str], order: str, where: str) -> None:
    """Refuse policies that the source has nothing for.

    Args:
        events: the policies.
        columns: our column names that the source has.
        order: what orders the events.
        where: the source, for messages.

    Raises:
        DataError: a policy needs a column or an order that is not there.
    """
    if events.types is not None and "event_type" not in columns:
        raise DataError(f"{where}: events.types needs a column of event types; name it: read.columns.event_type=NAME")
    if events.min_weight is not None and "weight" not in columns:
        raise DataError(f"{where}: events.min_weight needs a column of weights; name it: read.columns.weight=NAME")
    if order != "rows":
        return
    for name, value, plain in (("duplicates", events.duplicates, "keep"), ("ties", events.ties, "file")):
        if value != plain:
            raise DataError(
                f"{where}: events.{name}={value} needs times or positions, but the rows of the file order the events, "
                f"so that no two are of one moment; set events.{name}={plain}, or name the column: "
                "read.columns.timestamp=NAME"
            )


def choose(rows: pl.DataFrame, events: EventConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows whose type and weight count, and how many do not, by policy.

    Args:
        rows: `event_type` and `weight` where the policies need them.
        events: the policies.
    """
    left_out: dict[str, int] = {}
    if events.types is not None:
        is_chosen = rows["event_type"].is_in(list(events.types)).fill_null(value=False)
        others = rows.filter(~is_chosen)["event_type"].fill_null("(none)").value_counts()
        left_out |= {f"type:{name}": count for name, count in sorted(others.iter_rows())}
        rows = rows.filter(is_chosen)
    if events.min_weight is not None:
        is_heavy = (rows["weight"] >= events.min_weight).fill_null(value=False)
        if not is_heavy.all():
            left_out["weight"] = int((~is_heavy).sum())
            rows = rows.filter(is_heavy)
    return rows, left_out


def again(user: Int64s, item: Int64s, key: Int64s | None, kind: Int64s | None) -> Booleans:
    """Whether an event of the same user, item, moment and type stands before, (n,).

    Args:
        user: (n,) numbers in ascending order.
        item: (n,) numbers.
        key: (n,) times or positions, ascending within a user; None: every event has a moment of its own.
        kind: (n,) numbers of event types, or None.
    """
    found = np.zeros(len(user), np.bool_)
    if key is None or not len(user):
        return found
    is_tied = (user[1:] == user[:-1]) & (key[1:] == key[:-1])
    rows = np.flatnonzero(np.append(is_tied, False) | np.append(False, is_tied))
    if not len(rows):
        return found
    moment = np.cumsum(np.append(0, ~is_tied))[rows]
    columns = [moment, item[rows], *([] if kind is None else [kind[rows]])]
    order = order_by(*columns)
    same = np.ones(len(rows) - 1, np.bool_)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    found[rows[order[1:][same]]] = True
    return found


def repeated(user: Int64s, item: Int64s, repeats: Repeats) -> Booleans:
    """Whether the policy leaves out the event, (n,).

    Args:
        user: (n,) numbers in ascending order; of one user the events stand in order.
        item: (n,) numbers.
        repeats: the policy.
    """
    found = np.zeros(len(user), np.bool_)
    if repeats == "keep" or not len(user):
        return found
    if repeats == "collapse":
        found[1:] = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
        return found
    order = order_by(user, item)
    is_same = (user[order][1:] == user[order][:-1]) & (item[order][1:] == item[order][:-1])
    found[order[1:][is_same] if repeats == "first" else order[:-1][is_same]] = True
    return found


def moment_order(frame: pl.DataFrame, user: Int64s, key: Int64s | None, events: EventConfig) -> Int64s:
    """The places that put the events into the order of user, moment, and ties as the policy says, (n,).

    Args:
        frame: `user_id` and `item_id` of each event, in the order of the files and rows.
        user: (n,) a number for each user.
        key: (n,) times or positions, or None where the rows are the order.
        events: the policies.
    """
    if key is None:
        return order_by(user)
    if events.ties == "file":
        return order_by(user, key)
    return order_by(user, key, _tie_keys(frame, user, key, events))


def _tie_keys(frame: pl.DataFrame, user: Int64s, key: Int64s, events: EventConfig) -> Int64s:
    """What orders events of one moment; only those that share theirs get one."""
    ties = np.zeros(len(user), np.int64)
    if not len(user):
        return ties
    order = order_by(user, key)
    is_tied = (user[order][1:] == user[order][:-1]) & (key[order][1:] == key[order][:-1])
    rows = order[np.append(is_tied, False) | np.append(False, is_tied)]
    ties[rows] = tie_keys(frame[rows], key[rows], events)
    return ties


def tie_keys(frame: pl.DataFrame, key: Int64s, events: EventConfig) -> Int64s:
    """The rank of the item id, or a number drawn from (seed, user, moment, item), (n,) int64."""
    if events.ties == "item":
        codes, distinct = codes_of(frame["item_id"])
        ranks = np.empty(len(distinct), np.int64)
        ranks[distinct.arg_sort().to_numpy()] = np.arange(len(distinct))
        return ranks[codes]
    drawn = splitmix64(hash_ids(frame["user_id"]) ^ splitmix64(key.view(np.uint64) + np.uint64(events.seed)))
    drawn = splitmix64(drawn ^ hash_ids(frame["item_id"]))
    return (drawn >> np.uint64(1)).astype(np.int64)

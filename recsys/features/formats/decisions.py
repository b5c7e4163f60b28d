"""What is decided about a source when it is opened, from the first values of its files.

The first values are those of the first small block that has one, so a decision never depends on the size of a chunk.
"""

import time
from collections.abc import Sequence
from typing import Literal

import polars as pl

from recsys.errors import DataError
from recsys.features.dataset import Order
from recsys.features.formats.quarantine import Rules, kind_of_ids
from recsys.features.formats.raw import OpenedFile
from recsys.features.formats.times import (
    TimeKind,
    Unit,
    detect_unit,
    iso_to_us,
    looks_like_times,
    numbers_of,
    time_kind,
)
from recsys.features.schema import REQUIRED, ReadConfig, near_miss
from recsys.features.vocabulary import IdKind

DAY_US = 86_400_000_000


def order_of(first: OpenedFile, config: ReadConfig) -> tuple[Order, list[str]]:
    """What orders the events, and what to say about it.

    Raises:
        DataError: the time column holds nothing, or no line can be used.
    """
    if config.order in ("rows", "position"):
        return ("rows" if config.order == "rows" else "position"), []
    resolved = first.resolved
    if "timestamp" in resolved:
        is_told = config.order == "time" or config.time_unit != "auto"
        values = _first_times(first)
        if looks_like_times(values) or is_told:
            return "time", []
        if (numbers_of(values) < 0).mean() > 0.5:  # type: ignore[operator]  # the first values hold a number
            return "position", [f"{resolved['timestamp']} holds negative numbers, which are no times; mend them"]
        what = f"{resolved['timestamp']} holds numbers before 1973-03, taken as positions, not times"
        return "position", [f"{what}; read.order=time reads them as times"]
    near = near_miss("timestamp", first.names, resolved)
    hint = f" ({near!r} looks like one: read.columns.timestamp={near})" if near else ""
    if "position" in resolved:
        return "position", [f"no time column{hint}: ordered by {resolved['position']}"]
    return "rows", [f"no time column{hint}: ordered by the rows of the file"]


def misfits(opened: Sequence[OpenedFile], orders: Sequence[Order], config: ReadConfig) -> dict[int, str]:
    """Why a file does not go with the others, by its number.

    The measure is what most of the files hold, and where that is no answer, what most of the bytes hold. Files with
    columns go before files that are "user item item" lines by their looks alone, for any prose looks so.

    Args:
        opened: the files of one source.
        orders: what orders the events of each.
        config: `format` and `order` as set.
    """
    found: dict[int, str] = {}
    is_guessed = config.format == "auto" and config.separator is None
    columnar = next((one for one in opened if not one.is_sequences), None)
    for number, one in enumerate(opened):
        if is_guessed and columnar is not None and one.is_sequences:
            told = f"looks like 'user item item' lines, but {columnar.file.name} has columns"
            found[number] = f"{one.file.path}: {told}; leave it out of the folder, or read them apart by read.format"
    groups: dict[Order, list[int]] = {}
    for number, order in enumerate(orders):
        if number not in found:
            groups.setdefault(order, []).append(number)
    usual = max(groups, key=lambda order: (len(groups[order]), sum(opened[n].file.bytes for n in groups[order])))
    words = {"time": "times", "position": "positions", "rows": "neither times nor positions"}
    like = f"{opened[groups[usual][0]].file.name} holds {words[usual]}"
    like += f", as do {len(groups[usual]):,} of {len(opened):,} files" if len(groups[usual]) > 1 else ""
    for order, numbers in groups.items():
        for number in numbers if order != usual else []:
            told = f"{opened[number].file.path}: holds {words[order]}, but {like}"
            found[number] = f"{told}; read them apart, or set read.order=rows for the order of the rows"
    return found


def decide(opened: Sequence[OpenedFile], order: Order, config: ReadConfig) -> tuple[Rules, list[TimeKind]]:
    """The rules for all files, and what the times of each are.

    Raises:
        DataError: a time column holds nothing, or `read.latest_time` is no time.
    """
    kinds: list[TimeKind] = []
    unit: Unit | None = None if config.time_unit == "auto" else config.time_unit
    for one in opened if order == "time" else []:
        values = _first_times(one)
        kinds.append(time_kind(values) or "number")
        if kinds[-1] == "number" and unit is None:
            unit = detect_unit(numbers_of(values))
    rules = Rules(
        order=order,
        id_kinds={"user_id": _id_kind(opened, "user_id", config), "item_id": _id_kind(opened, "item_id", config)},
        told_ids=frozenset(name for name in REQUIRED if _id_rule(name, config) != "auto"),
        time_kind=kinds[0] if kinds else "number",
        unit=unit,
        is_unit_told=config.time_unit != "auto",
        latest_us=_latest_us(config),
    )
    return rules, kinds or ["number"] * len(opened)


def _first_times(opened: OpenedFile) -> pl.Series:
    name = opened.resolved["timestamp"]
    num_rows = num_rejected = 0
    first_rejected: tuple[int, str, str] | None = None
    for table in opened.tables(None):
        column = table.rows[name]
        num_rows += len(column)
        num_rejected += table.rejected.height
        if first_rejected is None and table.rejected.height:
            first_rejected = table.rejected.row(0)
        if time_kind(column) is not None and column.null_count() < len(column):
            return column
    if not num_rows and first_rejected is not None:
        line, reason, _ = first_rejected
        told = f"{opened.file.path}:{line}: {reason}; none of its {num_rejected:,} data lines can be used"
        raise DataError(f"{told}; mend the file, or name how to read it: read.format, read.separator, read.names")
    raise DataError(
        f"{opened.file.path}: column {name} is empty; name the time column: "
        "read.columns.timestamp=NAME, or set read.order=rows"
    )


def _id_kind(opened: Sequence[OpenedFile], name: str, config: ReadConfig) -> IdKind:
    """As set, else by the first ids there are; a source without any holds texts."""
    rule = _id_rule(name, config)
    if rule != "auto":
        return rule
    for one in opened:
        for table in one.tables(None):
            kind = kind_of_ids(table.rows[one.resolved[name]], name, table)
            if kind is not None:
                return kind
    return "str"


def _id_rule(name: str, config: ReadConfig) -> IdKind | Literal["auto"]:
    return config.user_ids if name == "user_id" else config.item_ids


def _latest_us(config: ReadConfig) -> int:
    if config.latest_time is None:
        return time.time_ns() // 1000 + DAY_US
    try:
        return iso_to_us(config.latest_time)
    except ValueError as error:
        raise DataError(
            f"read.latest_time={config.latest_time!r}: wanted an ISO time such as 2024-05-01T00:00:00Z"
        ) from error

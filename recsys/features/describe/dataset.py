"""A prepared dataset described: the same figures as of a log, its splits, and its leaks."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.features.dataset import PreparedDataset
from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.counts import Counts
from recsys.features.describe.shared import DAY_US, HOUR_US, TOP_USERS, shared_values, time_values
from recsys.features.describe.tally import Tally
from recsys.features.leakage import Leak, check_untouched, find_leaks
from recsys.features.leakage.blocks import blocks
from recsys.features.leakage.popularity import part_counts
from recsys.features.slices import Int64s


def describe_dataset(path: Path, config: DescribeConfig) -> dict[str, Any]:
    """What a prepared dataset holds, as plain values, with `splits`, `leaks` and `leakage`.

    Raises:
        DataError: no prepared dataset, or a damaged one.
    """
    dataset = PreparedDataset.open(path)
    leaks = [*check_untouched(dataset), *find_leaks(dataset)]
    manifest = dataset.manifest
    values: dict[str, Any] = {
        "path": str(path),
        "kind": "dataset",
        "order": dataset.order,
        "time_unit": manifest.get("time_unit"),
        "ids": {"users": dataset.users.kind, "items": dataset.items.kind},
        "protocol": dataset.protocol,
        "target": dataset.target,
        "protocol_string": dataset.protocol_string("test", "exclude") if _are_cuts_whole(leaks) else "",
        "cuts_us": manifest["cuts_us"],
        "shards": len(dataset.shards),
        "sources": manifest.get("sources", []),
        "appends": manifest.get("appends", []),
        "notes": manifest.get("notes", []),
        "counts": manifest["counts"],
        "splits": manifest.get("splits", {}),
        "leakage": manifest.get("leakage", {}),
        "leaks": [
            {"name": leak.name, "where": leak.where, "count": leak.count, "example": leak.example} for leak in leaks
        ],
    }
    # Arrays that do not fit each other cannot be counted.
    is_whole = not any(
        leak.name in ("misplaced cut", "unknown item", "unknown user", "changed bytes") for leak in leaks
    )
    return values | _shapes(dataset, config) if is_whole else values


def _are_cuts_whole(leaks: list[Leak]) -> bool:
    return all(leak.name != "misplaced cut" for leak in leaks)


def _shapes(dataset: PreparedDataset, config: DescribeConfig) -> dict[str, Any]:
    tally, days, hours = Tally(), Counts("day"), np.zeros(24, np.int64)
    longest: list[tuple[int, int]] = []
    earliest, latest = None, 0
    for block in blocks(dataset):
        tally.add(block.offsets, block.items.astype(np.int64), block.times, None, is_time=True)
        longest = _longest(longest, block.users, block.lengths)
        if block.times is not None and len(block.times):
            days.add(pl.Series(block.times // DAY_US))
            hours += np.bincount(block.times // HOUR_US % 24, minlength=24)
            low, latest = int(block.times.min()), max(latest, int(block.times.max()))
            earliest = low if earliest is None else min(earliest, low)
    lengths = np.concatenate(tally.lengths) if tally.lengths else np.zeros(0, np.int64)
    parts = part_counts(dataset)
    counts = parts.sum(0)[1:]
    raw = dataset.users.decode(np.array([user for user, _ in longest], np.int64))
    top = [(str(user), count) for user, (_, count) in zip(raw, longest, strict=True)]
    # Positions are not kept: without times ties cannot be seen any more.
    order = dataset.order if dataset.order == "time" else "rows"
    return shared_values(lengths, counts[counts > 0], tally, order, config, top) | {
        "time": time_values(earliest, latest, days.table(), hours, tally),
        "events_by_part": dict(zip(("train", "valid", "test"), parts.sum(1).tolist(), strict=True)),
    }


def _longest(so_far: list[tuple[int, int]], users: Int64s, lengths: Int64s) -> list[tuple[int, int]]:
    places = np.argsort(-lengths, kind="stable")[:TOP_USERS]
    found = [(int(users[place]), int(lengths[place])) for place in places]
    return sorted([*so_far, *found], key=lambda one: (-one[1], one[0]))[:TOP_USERS]

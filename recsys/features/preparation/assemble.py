"""A source that was split by user, as the files of a prepared dataset: arrange, filter, merge, encode, describe."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.features.arrays import load_array
from recsys.features.dataset import Order, PreparedDataset, Protocol
from recsys.features.leakage import leakage_report
from recsys.features.manifest import FORMAT, FORMAT_VERSION, hash_arrays, hash_tables, is_side_column
from recsys.features.preparation.describe import describe_splits
from recsys.features.preparation.filters import Kept
from recsys.features.preparation.folder import PARTS
from recsys.features.preparation.in_order import in_order
from recsys.features.preparation.progress import Say, Steps
from recsys.features.preparation.steps.arrange import arrange
from recsys.features.preparation.steps.encode import encode, event_types_of, split_shard
from recsys.features.preparation.steps.merge import Merged, item_numbers
from recsys.features.preparation.steps.order_statistic import order_statistic
from recsys.features.preparation.steps.scan import Scan
from recsys.features.prepare_config import PrepareConfig
from recsys.features.slices import Int64s, Shard
from recsys.features.splits import SplitConfig, cut_places, split_hash, time_cuts
from recsys.features.vocabulary import IdKind

EVENTS_PER_SHARD = 4_000_000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a dataset is made by, decided before its events are arranged."""

    config: PrepareConfig
    order: Order
    time_unit: str | None
    kinds: tuple[IdKind, IdKind]  # of user and item ids
    protocol: Protocol
    num_shards: int


def default_num_shards(num_rows: int) -> int:
    """Shards that one after another fit into memory: one up to 4 million events."""
    return max(1, -(-num_rows // EVENTS_PER_SHARD))


def arrange_shards(
    work: Path, scanned: Scan, plan: Plan, steps: Steps, frame: Callable[[int], pl.DataFrame] | None = None
) -> Kept:
    """Every shard's events in order, with the policies applied; nothing is filtered yet.

    Args:
        work: the dataset's work folder.
        scanned: the source.
        plan: what is made.
        steps: told of every shard.
        frame: the rows of a shard; by default those of the source.

    Raises:
        DataError: no time is credible, or the policies leave nothing.
    """
    if scanned.clamped and scanned.latest is None:
        raise DataError(f"all {scanned.clamped:,} times lie in the future; mend them, or set read.latest_time")
    rows = frame or scanned.shard
    steps.start("arranging", scanned.events, "events")
    parts = []
    for number in range(plan.num_shards):
        shard = rows(number)
        parts.append(arrange(shard, plan.config.events, work / PARTS / f"arranged-{number:05d}"))
        steps.advance(shard.height)
        del shard
    if not any(len(part.item) for part in parts):
        left_out = ", ".join(f"{count:,} by {name}" for name, count in sorted(scanned.left_out.items()))
        raise DataError(f"no event of {scanned.events:,} counts: {left_out or 'none was good'}; see events.types, …")
    numbers, num_items = item_numbers([part.items for part in parts])
    return Kept.all_of(parts, numbers, num_items)


def write_dataset(
    work: Path,
    kept: Kept,
    merged: Merged,
    plan: Plan,
    kinds: Sequence[str | None],
    steps: Steps,
    known_types: Sequence[str] = (),
) -> list[str]:
    """Write vocabulary and shards, times not cut yet; gives back the event types by number, known ones first."""
    steps.start("writing", sum(len(part.item) for part in kept.parts), "events")
    event_types = event_types_of(kept, kinds, known_types)

    def written(number: int) -> int:
        encode(kept, merged, number, plan.order, list(kinds), event_types, work / "shards" / f"{number:05d}")
        return len(kept.parts[number].item)

    for num_events in in_order(written, range(plan.num_shards)):
        steps.advance(num_events)
    merged.users.save(work / "vocabulary", "users")
    merged.items.save(work / "vocabulary", "items")
    shutil.rmtree(work / PARTS)
    return event_types


def split_dataset(work: Path, plan: Plan) -> tuple[list[Shard], tuple[int, int] | None]:
    """Write each user's cuts; gives back the shards, memory-mapped, and the cuts by time (us).

    Raises:
        DataError: a part would be empty.
    """
    folders = [work / "shards" / f"{number:05d}" for number in range(plan.num_shards)]
    cuts = (
        cuts_of([load_array(folder / "times.npy", np.int64) for folder in folders], plan.config.split)
        if plan.protocol == "time"
        else None
    )
    shards = []
    for folder in folders:
        arrays: dict[str, Any] = {
            "users": load_array(folder / "users.npy", np.int64),
            "offsets": load_array(folder / "offsets.npy", np.int64),
            "items": load_array(folder / "items.npy", np.int32),
            "times": load_array(folder / "times.npy", np.int64) if plan.order == "time" else None,
        }
        none = np.zeros(0, np.int64)
        train_end, valid_end = split_shard(
            Shard(**arrays, train_end=none, valid_end=none), plan.protocol, cuts, plan.config.split
        )
        for name, ends in (("train_end", train_end), ("valid_end", valid_end)):
            np.save(folder / f"{name}.npy", ends)
            arrays[name] = load_array(folder / f"{name}.npy", np.int64)
        shards.append(Shard(**arrays))
    return shards, cuts


def finish(
    work: Path, shards: list[Shard], cuts: tuple[int, int] | None, plan: Plan, told: dict[str, Any], tell: Say
) -> None:
    """Hash, describe and check the dataset, and write its manifest.

    Args:
        work: the dataset's work folder.
        shards: as `split_dataset` gives them.
        cuts: likewise.
        plan: what is made.
        told: what else the manifest says: sources, config, notes, counts, items_table, side, appends.
        tell: called with one line a step.

    Raises:
        DataError: too few events a user, or training sees what its protocol forbids.
    """
    arrays = sorted(str(path.relative_to(work).as_posix()) for path in work.rglob("*.npy"))
    began = time.perf_counter()
    side = [name for name in arrays if is_side_column(name)]
    manifest = told | {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "order": plan.order,
        "time_unit": plan.time_unit,
        "ids": {"users": plan.kinds[0], "items": plan.kinds[1]},
        "protocol": plan.protocol,
        "target": plan.config.split.target or ("all" if plan.protocol == "time" else "next"),
        "cuts_us": cuts and list(cuts),
        "num_shards": plan.num_shards,
        "files": {name: (work / name).stat().st_size for name in arrays},
        "data_hash": hash_arrays(work, [name for name in arrays if not is_side_column(name)]),
        "side": told["side"] | ({"hash": hash_arrays(work, side)} if side else {}),
        "tables": hash_tables(work),
    }
    hashed = time.perf_counter() - began
    dataset = PreparedDataset(work, manifest, shards)
    manifest["split_hash"] = split_hash(dataset)
    manifest["splits"] = describe_splits(dataset)
    manifest["leakage"] = leakage_report(dataset)
    takes_back = plan.protocol == "time" and plan.config.events.repeats == "last"
    manifest["leakage"]["filters_count_all_events"] = plan.config.filters.leaves_out or takes_back
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (work / "manifest.json").write_text(text + "\n", encoding="utf-8")
    checked = time.perf_counter() - began - hashed
    tell(
        f"split {plan.protocol}, {plan.num_shards} shard(s); "
        f"arrays hashed in {hashed:.2f} s, checked in {checked:.2f} s"
    )


def cuts_of(times: list[Int64s], split: SplitConfig) -> tuple[int, int]:
    """As `time_cuts` of all times, without sorting them."""
    places = cut_places(sum(len(array) for array in times), split.valid_share, split.test_share)
    first, second = (order_statistic(times, place) for place in places)
    if first == min(int(array.min()) for array in times if len(array)) or (split.valid_share > 0 and first == second):
        return time_cuts(np.sort(np.concatenate(times)), split.valid_share, split.test_share)  # refuses, and says why
    return first, second

"""A log that was read, as the files of a prepared dataset: filter, order, split, write, describe."""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset, Protocol, Split
from recsys.features.leakage import leakage_report
from recsys.features.manifest import FORMAT, FORMAT_VERSION, hash_arrays
from recsys.features.preparation.arrange import Arranged, arrange, default_num_shards, shard_numbers
from recsys.features.preparation.filters import keep_frequent
from recsys.features.preparation.item_table import join_items, read_items
from recsys.features.prepare_config import PrepareConfig
from recsys.features.readers import ReadResult
from recsys.features.slices import Int64s, Shard, offsets_of, ranges
from recsys.features.splits import SplitConfig, by_time, leave_one_out, ratio, time_cuts

Say = Callable[[str], None]


def assemble(
    work: Path, result: ReadResult, protocol: Protocol, config: PrepareConfig, inputs: dict[str, Any], tell: Say
) -> None:
    """Write the whole dataset into a folder of its own.

    Args:
        work: the folder; what stands there is a leftover and is removed.
        result: the log, as read.
        protocol: how to split.
        config: filters, shares, items and shards.
        inputs: what the manifest says about the sources and the configuration.
        tell: called with one line a step.

    Raises:
        DataError: nothing is left by the filters, a part of the split is empty, or the items cannot be read.
    """
    started = time.perf_counter()
    kept = keep_frequent(result.interactions, config.filters)
    arranged = arrange(kept, result.order)
    num_users, num_items = len(arranged.users), len(arranged.items)
    seconds = time.perf_counter() - started
    tell(f"{kept.height:,} events kept, of {num_users:,} users and {num_items:,} items, in {seconds:.2f} s")
    started = time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    cuts = _cuts(arranged, protocol, config.split)
    shards = _shards(arranged, protocol, cuts, config)
    for number, shard in enumerate(shards):
        _save_shard(work / "shards" / f"{number:05d}", shard)
    arranged.users.save(work / "vocabulary", "users")
    arranged.items.save(work / "vocabulary", "items")
    result.rejected.write_parquet(work / "rejected.parquet")
    item_counts = _write_items(work, arranged, config, tell)
    manifest = _manifest(work, result, arranged, protocol, cuts, len(shards), config) | inputs
    manifest["items_table"] = item_counts
    _describe_splits(PreparedDataset(work, manifest, shards))
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
    (work / "manifest.json").write_text(text + "\n", encoding="utf-8")
    tell(f"split {protocol}, {len(shards)} shard(s), written in {time.perf_counter() - started:.2f} s")


def _cuts(arranged: Arranged, protocol: Protocol, split: SplitConfig) -> tuple[int, int] | None:
    if protocol != "time" or arranged.times is None:
        return None
    return time_cuts(np.sort(arranged.times), split.valid_share, split.test_share)


def _shards(arranged: Arranged, protocol: Protocol, cuts: tuple[int, int] | None, config: PrepareConfig) -> list[Shard]:
    num_shards = config.shards or default_num_shards(len(arranged.item_index))
    number_of = shard_numbers(arranged.users, num_shards)
    return [_shard(arranged, np.flatnonzero(number_of == n), protocol, cuts, config.split) for n in range(num_shards)]


def _shard(
    arranged: Arranged, rows: Int64s, protocol: Protocol, cuts: tuple[int, int] | None, split: SplitConfig
) -> Shard:
    start, end = arranged.offsets[rows], arranged.offsets[rows + 1]
    position, offsets = ranges(start, end), offsets_of(end - start)
    times = None if arranged.times is None else arranged.times[position]
    if cuts is not None and times is not None:
        train_end, valid_end = by_time(offsets, times, cuts)
    elif protocol == "ratio":
        train_end, valid_end = ratio(offsets, split.valid_share, split.test_share)
    else:
        train_end, valid_end = leave_one_out(offsets, with_valid=protocol == "loo")
    return Shard(rows + 1, offsets, arranged.item_index[position], times, train_end, valid_end)


def _save_shard(folder: Path, shard: Shard) -> None:
    folder.mkdir(parents=True)
    for field in dataclasses.fields(shard):
        array = getattr(shard, field.name)
        if array is not None:
            np.save(folder / f"{field.name}.npy", np.ascontiguousarray(array))


def _write_items(work: Path, arranged: Arranged, config: PrepareConfig, tell: Say) -> dict[str, int] | None:
    if config.items is None:
        return None
    table, num_rejected = read_items(config.items, config.items_read)
    joined, counts = join_items(table, arranged.items)
    joined.write_parquet(work / "items.parquet")
    counts["rejected"] = num_rejected
    tell(f"{config.items.name}: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    return counts


def _manifest(
    work: Path,
    result: ReadResult,
    arranged: Arranged,
    protocol: Protocol,
    cuts: tuple[int, int] | None,
    num_shards: int,
    config: PrepareConfig,
) -> dict[str, Any]:
    arrays = sorted(str(path.relative_to(work).as_posix()) for path in work.rglob("*.npy"))
    reasons = dict(sorted(result.rejected["reason"].value_counts().iter_rows()))
    counts = result.counts | {
        "rejected_by_reason": reasons,
        "users": len(arranged.users),
        "items": len(arranged.items),
        "events_read": result.counts["events"],
        "events": len(arranged.item_index),
    }
    target = config.split.target or ("all" if protocol == "time" else "next")
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "order": result.order,
        "time_unit": result.time_unit,
        "notes": result.notes,
        "ids": {"users": arranged.users.kind, "items": arranged.items.kind},
        "protocol": protocol,
        "target": target,
        "cuts_us": cuts and list(cuts),
        "counts": counts,
        "num_shards": num_shards,
        "files": {name: (work / name).stat().st_size for name in arrays},
        "data_hash": hash_arrays(work, arrays),
    }


def _describe_splits(dataset: PreparedDataset) -> None:
    """Put counts of each split, the split's hash and the leakage report into the dataset's manifest."""
    manifest = dataset.manifest
    manifest["split_hash"] = _split_hash(dataset)
    seen = dataset.train_counts() > 0
    train = dataset.train_slices()
    parts: dict[str, Any] = {
        "train": {"events": int(train.lengths.sum()), "users": int(np.count_nonzero(train.lengths))}
    }
    splits: tuple[Split, ...] = ("valid", "test")
    for split in splits:
        queries = dataset.queries(split)
        parts[split] = {
            "users": len(queries),
            "cold_users": queries.num_cold,
            "targets": len(queries.target_items),
            "targets_never_trained": int(np.sum(~seen[queries.target_items])),
        }
    if not parts["test"]["users"]:
        raise DataError(
            f"split.protocol={dataset.protocol}: no user has a history and a test event; too few events a user"
        )
    manifest["splits"] = parts
    manifest["leakage"] = leakage_report(dataset)
    filters = manifest["config"]["filters"]
    manifest["leakage"]["filters_count_all_events"] = (
        bool(filters["k_core"]) or max(filters["min_item_events"], filters["min_user_events"]) > 1
    )


def _split_hash(dataset: PreparedDataset) -> str:
    digest = hashlib.sha256(f"{dataset.protocol}/{dataset.target}/{dataset.manifest['cuts_us']}".encode())
    for shard in dataset.shards:
        digest.update(np.ascontiguousarray(shard.train_end).tobytes() + np.ascontiguousarray(shard.valid_end).tobytes())
    return digest.hexdigest()[:12]

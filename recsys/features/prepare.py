"""Logs into a prepared dataset: read, set bad rows aside, filter, order, split, write whole or not at all.

    read      rows are split by user into shards                       a file a chunk of rows
    arrange   inside a shard: order, policies                          files to files
    merge     filters, vocabularies by first appearance                over all shards
    write     inside a shard: indices, splits                          files to the dataset

The same source and configuration give the same `.npy` and `.json` bytes, whatever the number of threads and the size of
the chunks; the number of shards changes how users are spread over files, and nothing else.
"""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from recsys import config as configuration
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset, Protocol
from recsys.features.formats.source import hash_files, list_files
from recsys.features.preparation.assemble import Plan, arrange_shards, finish, split_dataset, write_dataset
from recsys.features.preparation.filters import FilterConfig, Kept, keep_frequent
from recsys.features.preparation.folder import only_writer, refuse_foreign, remove_leftovers, work_folder
from recsys.features.preparation.held_back import NAME, hold_back, nothing_held
from recsys.features.preparation.item_sides import write_item_sides
from recsys.features.preparation.items import write_items
from recsys.features.preparation.policies import EventConfig
from recsys.features.preparation.progress import Say, Steps, silent
from recsys.features.preparation.reading import (
    Opened,
    counts_of,
    open_source,
    split_source,
    write_rejected,
)
from recsys.features.preparation.steps.merge import merge
from recsys.features.prepare_config import PrepareConfig
from recsys.features.readers import InteractionSource
from recsys.features.schema import ReadConfig
from recsys.features.splits import SplitConfig
from recsys.files import replace_folder

__all__ = ["EventConfig", "FilterConfig", "PrepareConfig", "ReadConfig", "SplitConfig", "prepare"]

NUM_STEPS = 3


def prepare(source: Path, out: Path, config: PrepareConfig, say: Say | None = None) -> PreparedDataset:
    """The dataset prepared from this source, written to `out`.

    A dataset that stands there and was made from the same bytes by the same configuration is left as it is, with the
    days that were appended to it. Any other prepared dataset is replaced at the end; anything else at `out` is refused
    and kept.

    Args:
        source: a log; see `open_interactions`.
        out: the folder to write.
        config: how.
        say: called with one line a step, and at most every two seconds with how far a long step is.

    Raises:
        DataError: the source cannot be used as asked, too many of its lines are bad (all of them are left in
            `OUT.rejected.parquet`), something else stands at `out`, another process writes there, or it cannot
            be written.
        StorageError: the disk is full or failed; an older dataset at `out` is kept.
    """
    source, out, tell = Path(source), Path(os.path.abspath(out)), say or silent
    with only_writer(out):
        return _prepare(source, out, config, tell)


def _prepare(source: Path, out: Path, config: PrepareConfig, tell: Say) -> PreparedDataset:
    """As `prepare`, under the lock."""
    remove_leftovers(out)
    refuse_foreign(out)
    began = time.perf_counter()
    opened = open_source(source, config.read, tell)
    inputs = {"sources": opened.described, "config": plain_config(config)}
    present = _present(out, inputs, "event_type" in opened.source.columns or config.items is not None, tell)
    if present is not None:
        appended = len(present.manifest["appends"])
        tell(f"{out}: up to date" + (f", with {appended} appended" if appended else ""))
        return present
    protocol = _protocol(opened.source, config, source)
    with work_folder(out) as work:
        _write(work, opened, protocol, config, out, inputs, tell)
        replace_folder(out, work)
    dataset = PreparedDataset.open(out)
    num_events, seconds = dataset.num_events, time.perf_counter() - began
    tell(f"{out}: {num_events:,} events prepared in {seconds:.2f} s ({num_events / seconds:,.0f} a second)")
    return dataset


def plain_config(config: PrepareConfig) -> dict[str, Any]:
    """The configuration as it stands in the manifest: a table of items by its bytes."""
    plain = configuration.dump(config)
    plain["items"] = None if config.items is None else hash_files(list_files(config.items)[0])
    return plain


def _write(
    work: Path, opened: Opened, protocol: Protocol, config: PrepareConfig, out: Path, inputs: dict[str, Any], tell: Say
) -> None:
    """The whole dataset in its work folder."""
    steps = Steps(tell, NUM_STEPS)
    source, scanned, num_shards = split_source(opened, config.events, config.shards, work, out, steps, tell)
    kinds = (source.user_kind, source.item_kind)
    plan = Plan(config, source.order, source.time_unit, kinds, protocol, num_shards)
    write_rejected(scanned, work / "rejected.parquet")
    kept = arrange_shards(work, scanned, plan, steps)
    keep_frequent(kept, config.filters)
    merged = merge(kept, plan.order == "time", kinds)
    num_events, num_users, num_items = kept.num_events(), len(merged.users), len(merged.items)
    tell(f"{num_events:,} events kept, of {num_users:,} users and {num_items:,} items")
    if config.filters.leaves_out and config.filters.k_core is None:
        hold_back(kept, merged, nothing_held()).write_parquet(work / NAME)
    left_out = sum((part.left_out for part in kept.parts), Counter[str]())
    counts = counts_of(scanned, left_out) | {"events": num_events, "users": num_users, "items": num_items}
    for name, count in counts["left_out"].items():
        tell(f"{count:,} events left out by events policy {name}")
    told = inputs | {"notes": [*source.notes, *_duplicates(kept, tell)], "counts": counts, "appends": []}
    event_types = write_dataset(work, kept, merged, plan, list(scanned.kinds), steps)
    shards, cuts = split_dataset(work, plan)
    told["items_table"] = config.items and write_items(work, config.items, config.items_read, merged.items, tell)
    told["side"] = {"event_types": event_types} | write_item_sides(work, config, tell)
    finish(work, shards, cuts, plan, told, tell)


def _duplicates(kept: Kept, tell: Say) -> list[str]:
    count = sum(part.duplicates for part in kept.parts)
    if not count:
        return []
    note = f"{count:,} events repeat user, item, moment and type of another; events.duplicates=drop leaves them out"
    tell(note)
    return [note]


def _present(out: Path, inputs: dict[str, Any], has_sides: bool, tell: Say) -> PreparedDataset | None:
    """The dataset that stands at `out`, made from the same inputs with its side columns, every byte as it was."""
    if not (out / "manifest.json").is_file():
        return None
    try:
        dataset = PreparedDataset.open(out)
    except DataError:
        return None
    manifest = dataset.manifest
    if "appends" not in manifest or (has_sides and "side" not in manifest):
        return None
    # A dataset of an older version lacks the settings that came after it; they were null.
    known = {key: value for key, value in inputs["config"].items() if key in manifest["config"] or value is not None}
    if manifest["sources"] != inputs["sources"] or manifest["config"] != known:
        return None
    try:
        dataset.verify()
    except DataError:
        tell(f"{out}: its bytes are not those that were prepared; it is prepared anew")
        return None
    return dataset


def _protocol(log: InteractionSource, config: PrepareConfig, source: Path) -> Protocol:
    asked = config.split.protocol
    if asked == "time" and log.order != "time":
        others = "use --protocol loo, loo-novalid or ratio"
        told = f"{source}: split.protocol=time needs real times, but"
        if "timestamp" in log.columns and log.order_notes:
            raise DataError(f"{told} {'; '.join(log.order_notes)}; or {others}")
        remedy = f"{others}, or name the time column: read.columns.timestamp=NAME"
        raise DataError(f"{told} the events are ordered by {log.order}; {remedy}")
    return asked or ("time" if log.order == "time" else "loo")

"""A later day, added to a prepared dataset: every index stays, new ids follow, late events are merged into order.

Without filters the sequences and cuts are those of a dataset that was prepared from all days at once. With filters
what the dataset left out stays out: a user or item that has enough events now is added with its new events alone. What
an events policy left out stays out too.
"""

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from recsys import config as configuration
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.formats.source import hash_files, list_files
from recsys.features.preparation.assemble import Plan, arrange_shards, finish, split_dataset, write_dataset
from recsys.features.preparation.filters import Booleans, Kept
from recsys.features.preparation.folder import only_writer, refuse_foreign, remove_leftovers, work_folder
from recsys.features.preparation.held_back import NAME, hold_back, keep_eligible, nothing_held
from recsys.features.preparation.item_sides import write_item_sides
from recsys.features.preparation.items import carry_items, write_items
from recsys.features.preparation.progress import Say, Steps, silent
from recsys.features.preparation.reading import (
    Opened,
    counts_of,
    open_source,
    split_source,
    write_rejected,
)
from recsys.features.preparation.steps.merge import Merged, merge, series_of
from recsys.features.preparation.steps.scan import Scan, kind_numbers
from recsys.features.prepare_config import PrepareConfig
from recsys.features.schema import REQUIRED, ReadConfig
from recsys.features.vocabulary import IdKind
from recsys.files import replace_folder

NUM_STEPS = 3


def append(source: Path, out: Path, say: Say | None = None, items: Path | None = None) -> PreparedDataset:
    """The dataset at `out` with the events of this source added; the settings are those it was prepared by.

    Args:
        source: a log of new events.
        out: a prepared dataset.
        say: called with one line a step.
        items: a table of items that replaces the one the dataset has.

    Raises:
        DataError: `out` is no dataset that can grow, a byte of it has changed, another process writes there, some
            files of the source are in it already, the source is ordered otherwise, cannot be read, or has too many bad
            lines.
        StorageError: the disk is full or failed; the dataset is kept as it was.
    """
    source, out, tell = Path(source), Path(os.path.abspath(out)), say or silent
    with only_writer(out):
        return _append(source, out, items, tell)


def _append(source: Path, out: Path, items: Path | None, tell: Say) -> PreparedDataset:
    """As `append`, under the lock."""
    remove_leftovers(out)
    refuse_foreign(out)
    began = time.perf_counter()
    dataset = PreparedDataset.open(out)
    config = _config(dataset)
    dataset.verify()  # the grown dataset gets a hash of its own, which would cover up an edit
    opened = open_source(source, config.read, tell)
    if _is_there(dataset, opened):
        tell(f"{out}: {source} was appended before; nothing changes")
        return dataset
    if opened.source.order != dataset.order:
        raise DataError(
            f"{source}: its events are ordered by {opened.source.order}, those of {out} by {dataset.order}; "
            f"name its columns as in the first source, or set read.order and prepare all anew"
        )
    with work_folder(out) as work:
        _write(work, dataset, opened, dataclasses.replace(config, items=items), tell)
        replace_folder(out, work)
    grown = PreparedDataset.open(out)
    added, seconds = grown.manifest["appends"][-1]["events"], time.perf_counter() - began
    tell(f"{out}: {added:,} events appended to {dataset.num_events:,} in {seconds:.2f} s")
    return grown


def _config(dataset: PreparedDataset) -> PrepareConfig:
    """The settings that the dataset was prepared by, its kinds of ids among them; no items table."""
    manifest = dataset.manifest
    if "appends" not in manifest:
        raise DataError(f"{dataset.path}: was prepared by an older version, which kept too little; prepare it again")
    config = configuration.load(PrepareConfig, manifest["config"] | {"items": None}, f"{dataset.path}: ")
    if config.filters.k_core is not None:
        raise DataError(
            f"{dataset.path}: filters.k_core={config.filters.k_core} cannot be appended to: one event can bring back "
            "any number of older ones; prepare all days anew, or with filters.min_item_events and min_user_events"
        )
    kinds = manifest["ids"]
    read: ReadConfig = dataclasses.replace(config.read, user_ids=kinds["users"], item_ids=kinds["items"])
    return dataclasses.replace(config, read=read)


def _is_there(dataset: PreparedDataset, opened: Opened) -> bool:
    """Whether the whole source is in the dataset already; a part of it is refused."""
    sources = dataset.manifest["sources"] + [s for day in dataset.manifest["appends"] for s in day["sources"]]
    known = {source["sha256"] for source in sources}
    found = [source["name"] for source in opened.described if source["sha256"] in known]
    if found and len(found) < len(opened.described):
        raise DataError(f"{opened.path}: {found[0]} is in {dataset.path} already; name the new files alone")
    return bool(found)


def _write(work: Path, dataset: PreparedDataset, opened: Opened, config: PrepareConfig, tell: Say) -> None:
    """The whole grown dataset in its work folder."""
    manifest, out = dataset.manifest, dataset.path
    steps = Steps(tell, NUM_STEPS)
    try:
        source, scanned, num_shards = split_source(
            opened, config.events, manifest["num_shards"], work, out, steps, tell
        )
    except DataError as error:
        _refuse_texts(error, out)
        raise
    known = (series_of(dataset.users), series_of(dataset.items))
    kinds = cast(tuple[IdKind, IdKind], (manifest["ids"]["users"], manifest["ids"]["items"]))
    plan = Plan(config, dataset.order, manifest["time_unit"], kinds, dataset.protocol, num_shards)
    write_rejected(scanned, work / "rejected.parquet", out / "rejected.parquet")
    if scanned.clamped and scanned.latest is None:
        tell(f"{opened.name}: {_all_late(scanned)}")
        source.notes.append(_all_late(scanned))
    scanned.latest = max(_last_time(dataset), scanned.latest or 0)
    kept = arrange_shards(work, scanned, plan, steps, _rows(dataset, scanned, known))
    held = pl.read_parquet(out / NAME) if (out / NAME).is_file() else nothing_held()
    keep_eligible(kept, config.filters, known, held)
    merged = merge(kept, plan.order == "time", kinds, known)
    if config.filters.leaves_out:
        hold_back(kept, merged, held).write_parquet(work / NAME)
    day = _day(dataset, opened, kept, merged, held)
    for name in ("new_users", "new_items", "late_events", "superseded_events", "newly_eligible_items"):
        tell(f"{day[name]:,} {name.replace('_', ' ')}")
    told = {
        "sources": manifest["sources"],
        "config": manifest["config"] | ({"items": hash_files(list_files(config.items)[0])} if config.items else {}),
        "notes": manifest["notes"] + [note for note in source.notes if note not in manifest["notes"]],
        "counts": _counts(manifest["counts"], scanned, kept, merged),
        "appends": [*manifest["appends"], day],
    }
    side = manifest.get("side", {})
    event_types = write_dataset(work, kept, merged, plan, list(scanned.kinds), steps, side.get("event_types", ()))
    shards, cuts = split_dataset(work, plan)
    told["items_table"] = manifest["items_table"]
    if config.items is not None:
        told["items_table"] = write_items(work, config.items, config.items_read, merged.items, tell)
    elif (out / "items.parquet").is_file():
        told["items_table"] = carry_items(work, out, merged.items, manifest["items_table"], tell)
    told["side"] = {"event_types": event_types} | write_item_sides(work, config, tell, side.get("categories"))
    finish(work, shards, cuts, plan, told, tell)
    if cuts is not None:
        before, now = (", ".join(str(np.datetime64(cut, "us")) for cut in pair) for pair in (manifest["cuts_us"], cuts))
        tell(f"cuts moved from {before} to {now}")


def _refuse_texts(error: DataError, out: Path) -> None:
    """Say why a source was refused for its ids, where it was."""
    names = [name for name in REQUIRED if f"{name} is no integer" in str(error)]
    if names:
        settings = " and ".join(f"read.{name.removesuffix('_id')}_ids=str" for name in names)
        told = f"{out} holds integers as {' and '.join(names)}; for texts prepare it again, all days, with {settings}"
        raise DataError(f"{told}; {error}") from error


def _all_late(scanned: Scan) -> str:
    return f"all {scanned.clamped:,} times in the future set back to the latest one of the dataset"


def _rows(dataset: PreparedDataset, scanned: Scan, known: tuple[pl.Series, pl.Series]) -> Callable[[int], pl.DataFrame]:
    """A shard's rows, the old ones first and with numbers below 0."""

    def rows(number: int) -> pl.DataFrame:
        old, new = _old_rows(dataset, number, scanned.kinds, known), scanned.shard(number)
        if "kind" in old.columns and "kind" not in new.columns:
            unknown = scanned.kinds.setdefault(None, len(scanned.kinds))
            new = new.with_columns(kind=pl.lit(unknown, pl.Int32))
        return pl.concat([old, new.select(old.columns)], rechunk=True)

    return rows


def _old_rows(
    dataset: PreparedDataset, number: int, kinds: dict[str | None, int], known: tuple[pl.Series, pl.Series]
) -> pl.DataFrame:
    shard = dataset.shards[number]
    user = np.repeat(shard.users - 1, np.diff(shard.offsets))
    columns = {
        "user_id": known[0].gather(user),
        "item_id": known[1].gather(np.asarray(shard.items, np.int64) - 1),
        "row": pl.Series(np.arange(-len(user), 0)),
    }
    kept = dataset.path / "shards" / f"{number:05d}" / "append.parquet"
    extra = pl.read_parquet(kept) if kept.is_file() else pl.DataFrame()
    if shard.times is not None:
        columns["key"] = pl.Series(np.asarray(shard.times))
    elif "position" in extra.columns:
        columns["key"] = extra["position"]
    if "event_type" in extra.columns:
        columns["kind"] = kind_numbers(extra["event_type"], kinds)
    return pl.DataFrame(columns)


def _last_time(dataset: PreparedDataset) -> int:
    return max(
        (int(shard.times.max()) for shard in dataset.shards if shard.times is not None and len(shard.times)), default=0
    )


def _day(dataset: PreparedDataset, opened: Opened, kept: Kept, merged: Merged, held: pl.DataFrame) -> dict[str, Any]:
    """What the manifest says about the appended source."""
    first_user, first_item = dataset.num_users + 1, dataset.num_items + 1
    new_items = series_of(merged.items)[dataset.num_items :].cast(pl.String)
    return {
        "sources": opened.described,
        "events": sum(int(np.count_nonzero(_new(kept, number))) for number in range(len(kept.parts))),
        "new_users": len(merged.users) - dataset.num_users,
        "new_items": len(new_items),
        "late_events": _count_late(dataset, kept),
        "superseded_events": dataset.num_events - sum(int(np.count_nonzero(part.row < 0)) for part in kept.parts),
        "newly_eligible_items": int(new_items.is_in(held.filter(pl.col("what") == "item")["id"].implode()).sum()),
        "first_new_user_index": first_user,
        "first_new_item_index": first_item,
    }


def _new(kept: Kept, number: int) -> Booleans:
    """Whether each event of a part is kept and new, (E,)."""
    is_new: Booleans = kept.events(number) & (kept.parts[number].row >= 0)
    return is_new


def _count_late(dataset: PreparedDataset, kept: Kept) -> int:
    """New events before the last old one: of the dataset by time, of the user by position."""
    if dataset.order == "rows":
        return 0
    last, count = _last_time(dataset), 0
    for number, part in enumerate(kept.parts):
        key, is_new = part.key, _new(kept, number)
        assert key is not None
        if dataset.order == "time":
            count += int(np.count_nonzero(key[is_new] < last))
            continue
        lengths = np.diff(part.offsets)
        user = np.repeat(np.arange(len(lengths)), lengths)
        lasts = np.full(len(lengths), -1)
        np.maximum.at(lasts, user[part.row < 0], key[part.row < 0])
        count += int(np.count_nonzero(key[is_new] < lasts[user[is_new]]))
    return count


def _counts(before: dict[str, Any], scanned: Scan, kept: Kept, merged: Merged) -> dict[str, Any]:
    """The counts of the manifest: sums over all sources, and what the dataset holds now."""
    left_out = sum((part.left_out for part in kept.parts), Counter[str]())
    day = counts_of(scanned, left_out)
    counts: dict[str, Any] = {
        name: dict(sorted((Counter(before[name]) + Counter(value)).items()))
        if isinstance(value, dict)
        else before[name] + value
        for name, value in day.items()
    }
    return counts | {"events": kept.num_events(), "users": len(merged.users), "items": len(merged.items)}

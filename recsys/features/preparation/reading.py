"""A source, opened, hashed, and split by user into a work folder; too many bad lines stop the job."""

import dataclasses
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.features.formats.quarantine import refuse_too_many_rejected
from recsys.features.preparation.assemble import default_num_shards
from recsys.features.preparation.folder import PARTS
from recsys.features.preparation.policies import EventConfig, check_policies
from recsys.features.preparation.progress import Say, Steps
from recsys.features.preparation.steps.scan import Scan, scan
from recsys.features.readers import InteractionSource, MixedIds, hash_sources, open_interactions, with_string_ids
from recsys.features.schema import ReadConfig
from recsys.files import storage_errors

CHUNK_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source whose rows are not read yet.

    Attributes:
        path: as the caller named it.
        config: how it is read.
        source: the open source.
        described: `name`, `bytes` and `sha256` of each file.
    """

    path: Path
    config: ReadConfig
    source: InteractionSource
    described: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name


def open_source(path: Path, config: ReadConfig, tell: Say) -> Opened:
    """The source, hashed.

    Raises:
        DataError: it cannot be read as asked.
    """
    source = open_interactions(path, config)
    began = time.perf_counter()
    described = hash_sources(source)
    seconds, size = time.perf_counter() - began, sum(int(file["bytes"]) for file in described)
    tell(f"{path.name}: sha256 of {len(described):,} file(s), {size / 1e6:,.1f} MB, in {seconds:.2f} s")
    return Opened(path, config, source, described)


def split_source(
    opened: Opened, events: EventConfig, num_shards: int | None, work: Path, out: Path, steps: Steps, tell: Say
) -> tuple[InteractionSource, Scan, int]:
    """The source as it was read at last, its rows split by user, and the number of shards.

    Args:
        opened: as `open_source` gives it.
        events: policies.
        num_shards: None: as many as memory asks for.
        work: the dataset's work folder.
        out: the folder that was asked for; rejected lines of a stopped job are left beside it.
        steps: told of every chunk.
        tell: called with what was read.

    Raises:
        DataError: a policy has no column, the source is damaged, or too many of its lines are bad.
    """
    source, config = opened.source, opened.config
    began, attempt = time.perf_counter(), 0
    while True:
        check_policies(events, source.columns, source.order, str(opened.path))
        num = num_shards or default_num_shards(source.num_rows_estimate)
        steps.start("reading", source.num_rows_estimate, "lines")
        try:
            folder = work / PARTS / f"scan-{attempt}"
            scanned = scan(source.chunks(rows=CHUNK_ROWS), source.order, num, events, folder, steps)
            break
        except MixedIds as mixed:
            config = with_string_ids(config, mixed.column)
            source, attempt = open_interactions(opened.path, config), attempt + 1
            steps.again(f"{mixed.column} holds texts as well as integers")
    _say_read(opened.name, source, scanned, time.perf_counter() - began, tell)
    _refuse_bad_source(scanned, config, out)
    _refuse_absent_types(scanned, events, str(opened.path))
    return source, scanned, num


def counts_of(scanned: Scan, left_out: Counter[str]) -> dict[str, Any]:
    """The counts of a source, for the manifest."""
    return {
        "lines": scanned.lines,
        "good": scanned.good,
        "rejected": scanned.rejected,
        "rejected_by_reason": dict(sorted(scanned.reasons.items())),
        "clamped": scanned.clamped,
        "events_read": scanned.events,
        "left_out": dict(sorted((scanned.left_out + left_out).items())),
    }


def _say_read(name: str, source: InteractionSource, scanned: Scan, seconds: float, tell: Say) -> None:
    speed = f"{scanned.lines:,} lines read in {seconds:.2f} s ({scanned.lines / max(seconds, 1e-9):,.0f} a second)"
    tell(f"{name}: {speed}: {scanned.good:,} good, {scanned.rejected:,} rejected, order: {source.order}")
    for note in source.notes:
        tell(f"{name}: {note}")


def _refuse_bad_source(scanned: Scan, config: ReadConfig, out: Path) -> None:
    if scanned.rejected <= config.max_rejected_share * scanned.lines:
        return
    kept_at = out.with_name(f"{out.name}.rejected.parquet")
    rejected = scanned.rejected_rows()
    with storage_errors(kept_at, "free space or name another folder"):
        kept_at.parent.mkdir(parents=True, exist_ok=True)
        rejected.write_parquet(kept_at)
    refuse_too_many_rejected(rejected, scanned.lines, config, str(kept_at))


def _refuse_absent_types(scanned: Scan, events: EventConfig, where: str) -> None:
    absent = [name for name in events.types or () if name not in scanned.kinds]
    if absent:
        found = ", ".join(sorted("(none)" if name is None else name for name in scanned.kinds))
        raise DataError(f"{where}: events.types names {absent[0]!r}, which no event has; found {found}")


def write_rejected(scanned: Scan, path: Path, before: Path | None = None) -> None:
    """Write the rejected lines as Parquet, after those of an older file."""
    rejected = scanned.rejected_rows()
    pl.concat([pl.read_parquet(before), rejected] if before else [rejected]).write_parquet(path)

"""A log into the journal, from which a server knows its users.

Every event gets an id of its content (user, item, time or position, type, how many equal ones stand before it), so the
same file handed in twice, or again after an interruption, stores nothing twice. Bad rows are set aside, each with its
reason, in `rejected-….parquet` beside the journal.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.errors import DataError, InputError
from recsys.features.formats.quarantine import refuse_too_many_rejected
from recsys.features.journal.file import FILE
from recsys.features.journal.journal import CLAIMED, FUTURE_TOLERANCE_US, Event, Journal, event_id_of, now_us
from recsys.features.preparation.progress import silent
from recsys.features.readers import InteractionSource, MixedIds, hash_sources, open_interactions, with_string_ids
from recsys.features.schema import ReadConfig

EVENTS_PER_COMMIT = 20_000
SAY_EVERY_S = 2.0
NEVER_CLAMP = "9999-12-31T23:59:59Z"  # the journal clamps, and keeps the claimed time
EVENT_TYPE = "click"  # of a source that names none

Say = Callable[[str], None]


def ingest(
    source: Path, journal: Path, read_config: ReadConfig | None = None, say: Say | None = None
) -> dict[str, int | float]:
    """Append the interactions of a source to a journal, in the order of its files and lines.

    It is read twice, chunk by chunk: nothing is appended of a source with too many bad lines.

    Args:
        source: any log that `prepare` reads: a file, a folder or a glob.
        journal: the folder; made when missing.
        read_config: how to read.
        say: called with lines of progress.

    Returns:
        Counts: `lines`, of them `rejected` by the reader; `events`, of them `accepted`, `duplicates` and `refused` by
        the journal; `clamped` events, whose time lay in the future; `seconds`.

    Raises:
        DataError: the source cannot be used as asked, or too many of its lines are bad; nothing is appended.
        InputError: another process, such as a server, writes this journal.
        JournalError: the disk failed; what was committed stays.
    """
    source, folder, tell = Path(source), Path(journal), say or silent
    config = read_config or ReadConfig()
    began = time.perf_counter()
    if (folder / FILE).exists():
        Journal(folder).close()  # a journal that a server holds is refused before the source is read
    scan = _scan(source, dataclasses.replace(config, latest_time=config.latest_time or NEVER_CLAMP))
    tell(f"{source.name}: {scan.num_lines:,} lines read in {time.perf_counter() - began:.2f} s")
    for note in scan.source.notes:
        tell(f"{source.name}: {note}")
    with Journal(folder) as opened:
        kept_at = folder / f"rejected-{_digest(scan.source)[:12]}.parquet"
        _refuse_bad_source(scan, config, kept_at)
        counts, refused = _append(opened, scan, source.name, tell)
    rejected = pl.concat([scan.rejected, refused])
    if rejected.height:
        _write(rejected, kept_at)
        tell(f"{source.name}: {rejected.height:,} not stored, each with its reason in {kept_at}")
    summary = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    tell(f"{folder}: {summary}, in {time.perf_counter() - began:.2f} s")
    lines = {"lines": scan.num_lines, "rejected": scan.rejected.height}
    return {**lines, **counts, "seconds": round(time.perf_counter() - began, 3)}


@dataclasses.dataclass(frozen=True)
class _Scan:
    """A source read once to its end: its counts, its bad lines, its latest credible time."""

    source: InteractionSource
    num_lines: int
    num_events: int
    rejected: pl.DataFrame
    latest_us: int | None


def _scan(path: Path, config: ReadConfig) -> _Scan:
    source = open_interactions(path, config)
    num_lines = num_events = num_clamped = 0
    rejected, latest = [], []
    try:
        for chunk in source.chunks():
            num_lines, num_events = num_lines + chunk.num_lines, num_events + chunk.interactions.height
            rejected.append(chunk.rejected)
            if source.order == "time":
                latest.append(chunk.interactions["timestamp"].max())
                num_clamped += int(chunk.interactions["is_clamped"].sum())
    except MixedIds as mixed:
        return _scan(path, with_string_ids(config, mixed.column))
    known = [time_us for time_us in latest if isinstance(time_us, int)]
    if num_clamped and not known:
        raise DataError(f"{path}: every time lies in the future; check the clock, or set read.latest_time")
    return _Scan(source, num_lines, num_events, pl.concat(rejected), max(known, default=None))


def _digest(source: InteractionSource) -> str:
    """The sha256 of the source: of its bytes, or of the sums of its files."""
    sums = [str(file["sha256"]) for file in hash_sources(source)]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def _refuse_bad_source(scan: _Scan, config: ReadConfig, kept_at: Path) -> None:
    try:
        refuse_too_many_rejected(scan.rejected, scan.num_lines, config, str(kept_at))
    except DataError:
        _write(scan.rejected, kept_at)
        raise


def _append(journal: Journal, scan: _Scan, name: str, tell: Say) -> tuple[dict[str, int], pl.DataFrame]:
    """Append commit by commit: counts, and the events that the journal refuses, as rejected rows."""
    counts = dict.fromkeys(("events", "accepted", "duplicates", "refused", "clamped"), 0)
    refused: list[tuple[str, int, str, str]] = []
    began = told = time.perf_counter()
    for rows in _event_rows(scan):
        counts["clamped"] += _num_clamped(rows)
        for start in range(0, rows.height, EVENTS_PER_COMMIT):
            part = rows[start : start + EVENTS_PER_COMMIT]
            _commit(journal, part, [file.name for file in scan.source.files], counts, refused)
            if (moment := time.perf_counter()) - told > SAY_EVERY_S:
                told, stored = moment, counts["events"]
                tell(f"{name}: {stored:,} of {scan.num_events:,} events ({stored / (told - began):,.0f} a second)")
    counts["refused"] = len(refused)
    return counts, pl.DataFrame(refused, schema=scan.rejected.schema, orient="row")


def _commit(
    journal: Journal,
    rows: pl.DataFrame,
    files: list[str],
    counts: dict[str, int],
    refused: list[tuple[str, int, str, str]],
) -> None:
    places, events = [], []
    for place, event in _events(rows, files):
        if isinstance(event, Event):
            events.append(event)
            places.append(place)
        else:
            refused.append((*place, event, ""))
    appended = journal.append(events)
    counts["events"] += rows.height
    counts["accepted"] += appended.accepted
    counts["duplicates"] += appended.duplicates
    refused += [(*places[number], CLAIMED, "") for number in appended.conflicts]


def _event_rows(scan: _Scan) -> Iterator[pl.DataFrame]:
    """The events chunk by chunk, with every column that one has, and how many equal events stand before each."""
    position, seen = 0, np.zeros(0, np.uint64)
    for chunk in scan.source.chunks():
        rows = chunk.interactions
        if scan.source.order == "rows":
            numbers = pl.int_range(position, position + rows.height, dtype=pl.Int64, eager=True)
            rows = rows.with_columns(position=numbers)
        elif scan.latest_us is not None:
            rows = rows.with_columns(pl.col("timestamp").fill_null(scan.latest_us))
        position += rows.height
        rows, keys = _with_occurrence(rows, seen)
        # Eight bytes an event: what a source repeats is known without its events in memory.
        seen = np.sort(np.concatenate([seen, keys]))
        yield rows


def _with_occurrence(rows: pl.DataFrame, seen: npt.NDArray[np.uint64]) -> tuple[pl.DataFrame, npt.NDArray[np.uint64]]:
    absent = {"timestamp": pl.Int64, "position": pl.Int64, "weight": pl.Float64, "event_type": pl.String}
    absent["session_id"] = pl.String
    rows = rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in absent.items() if name not in rows.columns
    )
    rows = rows.with_columns(
        pl.col("event_type").replace("", None).fill_null(EVENT_TYPE), pl.col("session_id").replace("", None)
    )
    same = ["user_id", "item_id", "timestamp", "position", "event_type"]
    keys = rows.select(same).hash_rows(0).to_numpy()
    before = np.searchsorted(seen, keys, side="right") - np.searchsorted(seen, keys, side="left")
    here = pl.int_range(pl.len(), dtype=pl.Int64).over(same)
    return rows.with_columns(occurrence=here + pl.Series(before, dtype=pl.Int64)), keys


def _num_clamped(rows: pl.DataFrame) -> int:
    return int((rows["timestamp"] > now_us() + FUTURE_TOLERANCE_US).sum())


def _events(rows: pl.DataFrame, files: list[str]) -> Iterator[tuple[tuple[str, int], Event | str]]:
    """File and line of each row with its event, or with why it can be none."""
    names = ("user_id", "item_id", "timestamp", "position", "event_type", "weight", "session_id", "occurrence")
    columns = rows.select("file", "line", *names).iter_rows()
    for file, line, user, item, time_us, position, event_type, weight, session, occurrence in columns:
        place = (files[file], line)
        order = f"p{position}" if time_us is None else f"t{time_us}"
        try:
            yield (
                place,
                Event(
                    user_id=user,
                    item_id=item,
                    time_us=time_us,
                    position=position,
                    event_type=event_type,
                    event_id=event_id_of(user, item, order, event_type, occurrence),
                    weight=weight,
                    session_id=session,
                ),
            )
        except InputError as error:
            yield place, str(error)


def _write(rejected: pl.DataFrame, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rejected.write_parquet(draft)
    draft.rename(path)

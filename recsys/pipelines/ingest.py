"""A log into the journal, from which a server knows its users.

Every event gets an id of its content (user, item, time or position, type, how many equal ones stand before it), so the
same file handed in twice, or again after an interruption, stores nothing twice. Bad rows are set aside, each with its
reason, in `rejected-….parquet` beside the journal.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from recsys.errors import DataError, InputError
from recsys.features.formats.quarantine import refuse_too_many_rejected
from recsys.features.journal.file import FILE
from recsys.features.journal.journal import CLAIMED, FUTURE_TOLERANCE_US, Event, Journal, event_id_of, now_us
from recsys.features.readers import ReadResult, read_interactions
from recsys.features.schema import ReadConfig

EVENTS_PER_COMMIT = 20_000
SAY_EVERY_S = 2.0
NEVER_CLAMP = "9999-12-31T23:59:59Z"  # the journal clamps, and keeps the claimed time
EVENT_TYPE = "click"  # of a source that names none

Say = Callable[[str], None]


def ingest(
    source: Path, journal: Path, read_config: ReadConfig | None = None, say: Say | None = None
) -> dict[str, int | float]:
    """Append the interactions of a file to a journal, in the order of its lines.

    Args:
        source: any log that `prepare` reads.
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
    source, folder, tell = Path(source), Path(journal), say or _silent
    config = read_config or ReadConfig()
    began = time.perf_counter()
    if (folder / FILE).exists():
        Journal(folder).close()  # a journal that a server holds is refused before the source is read
    result = read_interactions(source, dataclasses.replace(config, latest_time=config.latest_time or NEVER_CLAMP))
    tell(f"{source.name}: {result.counts['lines']:,} lines read in {time.perf_counter() - began:.2f} s")
    for note in result.notes:
        tell(f"{source.name}: {note}")
    with Journal(folder) as opened:
        kept_at = folder / f"rejected-{str(result.sources[0]['sha256'])[:12]}.parquet"
        _refuse_bad_source(result, config, kept_at)
        counts, refused = _append(opened, result, source.name, tell)
    rejected = pl.concat([result.rejected, refused])
    if rejected.height:
        _write(rejected, kept_at)
        tell(f"{source.name}: {rejected.height:,} not stored, each with its reason in {kept_at}")
    summary = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    tell(f"{folder}: {summary}, in {time.perf_counter() - began:.2f} s")
    lines = {"lines": result.counts["lines"], "rejected": result.counts["rejected"]}
    return {**lines, **counts, "seconds": round(time.perf_counter() - began, 3)}


def _silent(line: str) -> None:
    del line


def _refuse_bad_source(result: ReadResult, config: ReadConfig, kept_at: Path) -> None:
    try:
        refuse_too_many_rejected(result.rejected, result.counts["lines"], config, str(kept_at))
    except DataError:
        _write(result.rejected, kept_at)
        raise


def _append(journal: Journal, result: ReadResult, name: str, tell: Say) -> tuple[dict[str, int], pl.DataFrame]:
    """Append commit by commit: counts, and the events that the journal refuses, as rejected rows."""
    rows = _with_occurrence(result)
    counts = {"events": rows.height, "accepted": 0, "duplicates": 0, "refused": 0, "clamped": _num_clamped(rows)}
    refused: list[tuple[str, int, str, str]] = []
    began = told = time.perf_counter()
    for done in range(0, rows.height, EVENTS_PER_COMMIT):
        events, lines = [], []
        for line, event in _events(rows[done : done + EVENTS_PER_COMMIT]):
            if isinstance(event, Event):
                events.append(event)
                lines.append(line)
            else:
                refused.append((name, line, event, ""))
        appended = journal.append(events)
        counts["accepted"] += appended.accepted
        counts["duplicates"] += appended.duplicates
        refused += [(name, lines[number], CLAIMED, "") for number in appended.conflicts]
        if (moment := time.perf_counter()) - told > SAY_EVERY_S:
            told, stored = moment, done + EVENTS_PER_COMMIT
            tell(f"{name}: {stored:,} of {rows.height:,} events ({stored / (told - began):,.0f} a second)")
    counts["refused"] = len(refused)
    return counts, pl.DataFrame(refused, schema=result.rejected.schema, orient="row")


def _with_occurrence(result: ReadResult) -> pl.DataFrame:
    """The interactions with every column that an event has, and how many equal events stand before each."""
    rows = result.interactions
    if result.order == "rows":
        rows = rows.with_row_index("position").cast({"position": pl.Int64})
    absent = {"timestamp": pl.Int64, "position": pl.Int64, "weight": pl.Float64, "event_type": pl.String}
    absent["session_id"] = pl.String
    rows = rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in absent.items() if name not in rows.columns
    )
    rows = rows.with_columns(
        pl.col("event_type").replace("", None).fill_null(EVENT_TYPE), pl.col("session_id").replace("", None)
    )
    same = ["user_id", "item_id", "timestamp", "position", "event_type"]
    return rows.with_columns(occurrence=pl.int_range(pl.len()).over(same))


def _num_clamped(rows: pl.DataFrame) -> int:
    return int((rows["timestamp"] > now_us() + FUTURE_TOLERANCE_US).sum())


def _events(rows: pl.DataFrame) -> Iterator[tuple[int, Event | str]]:
    """Line and event of each row, or why it can be none."""
    names = ("line", "user_id", "item_id", "timestamp", "position", "event_type", "weight", "session_id", "occurrence")
    for line, user, item, time_us, position, event_type, weight, session, occurrence in rows.select(names).iter_rows():
        order = f"p{position}" if time_us is None else f"t{time_us}"
        try:
            yield (
                line,
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
            yield line, str(error)


def _write(rejected: pl.DataFrame, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rejected.write_parquet(draft)
    draft.rename(path)

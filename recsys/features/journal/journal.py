"""The journal: the truth of what users did and of what they were shown.

SQLite in WAL mode with `synchronous=FULL`; one writing thread on one connection, where appends that wait together share
a commit. What `append` has answered is on disk: it outlives a killed process and a power cut. Rows are numbered by
`offset`, which only grows, so a reader's cursor is one number. Nothing is ever deleted; forgetting a person overwrites
the row in place.

An event is known by its `event_id`; the same event twice is stored once. Without an id it gets the hash of (user, item,
time or position, type, which of the equal events of one call it is), so that repeating a call stores nothing twice; an
event that has neither id nor time nor position is always one of its own.

An event without a time happened when it was received. A time further in the future than a minute is clamped to the
moment of receipt and the claimed one is kept beside it.
"""

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from recsys.errors import DataError, InputError, JournalError
from recsys.features.journal.events import Event, Impression, StoredEvent, StoredImpression, event_id_of, ids_of
from recsys.features.journal.file import FILE, check_id, id_of, key_of, lock_folder, open_reader, open_writer
from recsys.features.journal.group_commit import GroupCommit
from recsys.features.journal.tables import (
    FUTURE_TOLERANCE_US,
    HISTORY,
    INSERT_IMPRESSION,
    READ_EVENTS,
    READ_IMPRESSIONS,
    STATS,
    event_row,
    impression_row,
    insert_events,
    redact,
    stored_event,
    stored_impression,
)

__all__ = [
    "CLAIMED",
    "FUTURE_TOLERANCE_US",
    "AppendResult",
    "Event",
    "Impression",
    "Journal",
    "JournalStats",
    "PastEvents",
    "StoredEvent",
    "StoredImpression",
    "event_id_of",
    "now_us",
]

T = TypeVar("T")
CLAIMED = "event_id is already used for another event; give each event an id of its own"


def now_us() -> int:
    """The current time in microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of each event of a call: accepted + duplicates + len(conflicts) = events."""

    accepted: int
    duplicates: int
    ids: list[str]  # (events,) the id under which each is known
    conflicts: list[int]  # numbers of the events whose id is already used for another event; not stored


@dataclass(frozen=True, slots=True)
class PastEvents:
    """A user's events, oldest first; `times` in us is None if a source of theirs knows no times."""

    item_ids: list[int | str]
    times: list[int] | None
    event_types: list[str]


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Counts over the whole journal; `events` leaves out the redacted ones."""

    writer: str
    events: int
    users: int
    impressions: int
    clamped: int
    redacted: int
    last_offset: int
    size_bytes: int


class Journal:
    """The journal in a folder.

    Args:
        folder: made when missing, unless `read_only`.
        read_only: never writes; may stand beside a live writer, in any process.
        clock: microseconds since 1970, UTC.
        timeout_s: longest wait for a commit, in seconds; None waits as long as it takes.

    Raises:
        InputError: another process writes this journal, or the folder cannot be written.
        DataError: damaged, no journal, or an unknown format version.
    """

    def __init__(
        self,
        folder: Path,
        read_only: bool = False,
        clock: Callable[[], int] = now_us,
        timeout_s: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._clock = clock
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        self._lock = None if read_only else lock_folder(self.folder)
        self._writer: GroupCommit | None = None
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        try:
            if self._lock is not None:
                self._writer = GroupCommit(open_writer(self.folder), str(self.folder))
            self._idle.put(open_reader(self.folder))
        except BaseException:
            self.close()
            raise
        self.writer = self._one("SELECT value FROM meta WHERE key = 'writer'")[0]

    @property
    def failure(self) -> str | None:
        """Why the writer can no longer promise durability, or None; a read that meets damage is a reason too."""
        return self._writer.failure if self._writer else None

    def append(self, events: Sequence[Event]) -> AppendResult:
        """What became of `events`, once those accepted are on disk.

        Raises:
            JournalError: the commit failed, or an earlier one did, or it took longer than `timeout_s`.
            InputError: the journal is open for reading only.
        """
        received_us = self._clock()
        ids = ids_of(events)
        rows = [event_row(event, event_id, received_us) for event, event_id in zip(events, ids, strict=True)]
        outcomes = self._write(lambda connection: insert_events(connection, rows))
        conflicts = [number for number, outcome in enumerate(outcomes) if outcome == "conflict"]
        return AppendResult(outcomes.count("accepted"), outcomes.count("duplicate"), ids, conflicts)

    def append_impressions(self, impressions: Sequence[Impression]) -> None:
        """Store what answers showed; returns once it is on disk.

        Raises:
            JournalError, InputError: as `append`.
        """
        received_us = self._clock()
        rows = [impression_row(impression, received_us) for impression in impressions]
        self._write(lambda connection: connection.executemany(INSERT_IMPRESSION, rows).rowcount)

    def history(self, user_id: int | str, limit: int | None = None, as_of: int | None = None) -> PastEvents:
        """A user's last `limit` events, oldest first in the order (time, offset).

        Args:
            user_id: raw id; 7 and "7" are the same user.
            limit: how many at most; None is all.
            as_of: us since 1970; only events that happened until then.
        """
        bound = -1 if limit is None else limit
        upto = 2**63 - 1 if as_of is None else as_of
        rows = self._all(HISTORY, (key_of(user_id)[0], upto, bound))[::-1]
        times = [row[2] for row in rows]
        item_ids = [id_of(row[0], row[1]) for row in rows]
        return PastEvents(item_ids, None if None in times else times, [row[3] for row in rows])

    def users(self) -> list[int | str]:
        """Every user with an event, in the order of their first one."""
        query = "SELECT user, user_is_text, min(offset) FROM events WHERE user IS NOT NULL GROUP BY user ORDER BY 3"
        return [id_of(key, is_text) for key, is_text, _ in self._all(query)]

    def read(self, after_offset: int = 0, limit: int = 1_000) -> list[StoredEvent]:
        """The next events behind a cursor, in the order of their offsets; redacted ones are left out."""
        return [stored_event(row) for row in self._all(READ_EVENTS, (after_offset, limit))]

    def read_impressions(self, after_offset: int = 0, limit: int = 1_000) -> list[StoredImpression]:
        """The next impressions behind a cursor; redacted ones are left out."""
        return [stored_impression(row) for row in self._all(READ_IMPRESSIONS, (after_offset, limit))]

    def forget(self, user_id: int | str) -> int:
        """How many events and impressions of the user were redacted in place.

        Offsets stay, user, items and scores go, from every file of the folder. A digest of each event's id is kept, so
        that the same event handed in again stays forgotten.

        Raises:
            JournalError: as `append`, or a long-running reader keeps older pages alive.
            InputError: the journal is open for reading only.
        """
        check_id("user_id", user_id)
        key = key_of(user_id)[0]
        return self._write(lambda connection: redact(connection, key), truncates=True)

    def stats(self) -> JournalStats:
        """Counts over the whole journal; reads all of it."""
        events, users, clamped, redacted, last = self._one(STATS)
        impressions = self._one("SELECT count(*) FROM impressions WHERE items IS NOT NULL")[0]
        size = sum(file.stat().st_size for file in self.folder.glob(f"{FILE}*"))
        return JournalStats(self.writer, events, users, impressions, clamped, redacted, last or 0, size)

    def close(self) -> None:
        """Finish what waits, then free the folder. A second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self.failure is None:
            self._close_readers()
        if self._writer is not None:
            # Last to close, the writer checkpoints. After a failed write it must not, so it goes before the readers.
            self._writer.close()
        self._close_readers()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, job: Callable[[sqlite3.Connection], T], truncates: bool = False) -> T:
        if self._writer is None:
            raise InputError(f"{self.folder}: the journal is open for reading only")
        return self._writer.run(job, self._timeout_s, truncates)

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        if self._closed.is_set():
            raise JournalError(f"{self.folder}: the journal is closed")
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = open_reader(self.folder)
        try:
            yield connection
        finally:
            self._idle.put(connection)
            if self._closed.is_set():
                self._close_readers()

    def _all(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        try:
            with self._reader() as connection:
                return connection.execute(query, values).fetchall()
        except (sqlite3.Error, DataError) as error:
            if self._writer is not None and _is_damage(error):
                self._writer.fail(f"the journal is damaged ({error}); restore it from a backup, then restart")
            raise JournalError(f"{self.folder}: cannot be read ({error}); restore it from a backup") from error

    def _one(self, query: str) -> Any:
        return self._all(query)[0]

    def _close_readers(self) -> None:
        while not self._idle.empty():
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


def _is_damage(error: sqlite3.Error | DataError) -> bool:
    """Whether the file itself is at fault, not a lock, a closed connection or an interrupted call."""
    if isinstance(error, DataError):
        return True
    if "Could not decode" in str(error):  # text that is no UTF-8; raised without an error code
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary code of an extended one
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

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

import hashlib
import json
import math
import queue
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from recsys.errors import InputError, JournalError
from recsys.features.group_commit import GroupCommit
from recsys.features.journal_file import FILE, check_id, id_of, key_of, lock_folder, open_reader, open_writer

T = TypeVar("T")
FUTURE_TOLERANCE_US = 60_000_000  # clocks of clients differ; further ahead is a wrong clock
MAX_TEXT_CHARS = 256
CLAIMED = "event_id is already used for another event; give each event an id of its own"


def now_us() -> int:
    """The current time in microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a user did, as it is handed in; checked when it is made (InputError)."""

    user_id: int | str
    item_id: int | str
    time_us: int | None = None  # us since 1970, UTC; None: when it is received
    position: int | None = None  # its place where the source knows no times
    event_type: str = "click"
    event_id: str | None = None
    weight: float | None = None
    session_id: str | None = None
    request_id: str | None = None  # of the answer that showed the item

    def __post_init__(self) -> None:
        check_id("user_id", self.user_id)
        check_id("item_id", self.item_id)
        if self.time_us is not None and self.position is not None:
            raise InputError("time_us and position are both given; an event has one order")
        for name in ("time_us", "position"):
            value = getattr(self, name)
            if value is not None and not -(2**63) <= value < 2**63:
                raise InputError(f"{name}={value}: beyond 64 bits")
        if self.weight is not None and not math.isfinite(self.weight):
            raise InputError(f"weight={self.weight}: wanted a finite number")
        _check_text("event_type", self.event_type)
        for name in ("event_id", "session_id", "request_id"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it lies in the journal."""

    offset: int
    event_id: str
    user_id: int | str
    item_id: int | str
    event_type: str
    time_us: int | None  # None where the source knows a position only
    position: int | None
    received_us: int
    claimed_us: int | None  # the client's time, where it lay in the future and was clamped
    weight: float | None
    session_id: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Impression:
    """What one answer showed: items in their order (position 1 first) with the scores they were served with."""

    request_id: str
    kind: str  # "recommend" or "rank"
    user_id: int | str | None  # None: a raw sequence was asked about
    item_ids: Sequence[int | str]
    scores: Sequence[float | None]
    source: str  # "model" or "popularity"
    model: str
    model_version: str
    query_us: int
    delta_version: str | None = None
    propensity: float = 1.0  # probability that the policy shows this list; a deterministic ranking shows it always


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImpression:
    """An impression as it lies in the journal."""

    offset: int
    received_us: int
    impression: Impression


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
        """Why the writer can no longer promise durability, or None."""
        return self._writer.failure if self._writer else None

    def append(self, events: Sequence[Event]) -> AppendResult:
        """What became of `events`, once those accepted are on disk.

        Raises:
            JournalError: the commit failed, or an earlier one did, or it took longer than `timeout_s`.
            InputError: the journal is open for reading only.
        """
        received_us = self._clock()
        ids = _ids_of(events)
        rows = [_row_of(event, event_id, received_us) for event, event_id in zip(events, ids, strict=True)]
        outcomes = self._write(lambda connection: _insert_events(connection, rows))
        conflicts = [number for number, outcome in enumerate(outcomes) if outcome == "conflict"]
        return AppendResult(outcomes.count("accepted"), outcomes.count("duplicate"), ids, conflicts)

    def append_impressions(self, impressions: Sequence[Impression]) -> None:
        """Store what answers showed; returns once it is on disk.

        Raises:
            JournalError, InputError: as `append`.
        """
        received_us = self._clock()
        rows = [_impression_row(impression, received_us) for impression in impressions]
        self._write(lambda connection: connection.executemany(_INSERT_IMPRESSION, rows).rowcount)

    def history(self, user_id: int | str, limit: int | None = None, as_of: int | None = None) -> PastEvents:
        """A user's last `limit` events, oldest first in the order (time, offset).

        Args:
            user_id: raw id; 7 and "7" are the same user.
            limit: how many at most; None is all.
            as_of: us since 1970; only events that happened until then.
        """
        bound = -1 if limit is None else limit
        upto = 2**63 - 1 if as_of is None else as_of
        rows = self._all(_HISTORY, (key_of(user_id)[0], upto, bound))[::-1]
        times = [row[2] for row in rows]
        return PastEvents([id_of(row[0], row[1]) for row in rows], None if None in times else times)

    def users(self) -> list[int | str]:
        """Every user with an event, in the order of their first one."""
        query = "SELECT user, user_is_text, min(offset) FROM events WHERE user IS NOT NULL GROUP BY user ORDER BY 3"
        return [id_of(key, is_text) for key, is_text, _ in self._all(query)]

    def read(self, after_offset: int = 0, limit: int = 1_000) -> list[StoredEvent]:
        """The next events behind a cursor, in the order of their offsets; redacted ones are left out."""
        return [_stored_event(row) for row in self._all(_READ_EVENTS, (after_offset, limit))]

    def read_impressions(self, after_offset: int = 0, limit: int = 1_000) -> list[StoredImpression]:
        """The next impressions behind a cursor; redacted ones are left out."""
        return [_stored_impression(row) for row in self._all(_READ_IMPRESSIONS, (after_offset, limit))]

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
        return self._write(lambda connection: _redact(connection, key), truncates=True)

    def stats(self) -> JournalStats:
        """Counts over the whole journal; reads all of it."""
        events, users, clamped, redacted, last = self._one(_STATS)
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
        except sqlite3.Error as error:
            raise JournalError(f"{self.folder}: cannot be read ({error}); restore it from a backup") from error

    def _one(self, query: str) -> Any:
        return self._all(query)[0]

    def _close_readers(self) -> None:
        while not self._idle.empty():
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


def event_id_of(user_id: int | str, item_id: int | str, order: str, event_type: str, occurrence: int) -> str:
    """The id of an event that came without one: 32 hex digits.

    Args:
        user_id, item_id: raw ids; 7 and "7" are the same.
        order: `t` and the time in us, or `p` and the position.
        event_type: such as "click".
        occurrence: how many equal events stand before it in the same source.
    """
    user, item = str(user_id), str(item_id)
    text = f"{len(user)}:{user}{len(item)}:{item}{order}:{event_type}:{occurrence}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _ids_of(events: Sequence[Event]) -> list[str]:
    seen: Counter[tuple[str, str, str, str]] = Counter()
    ids = []
    for event in events:
        order = f"p{event.position}" if event.position is not None else f"t{event.time_us}"
        if event.event_id is not None:
            ids.append(event.event_id)
        elif order == "tNone":
            ids.append(uuid.uuid4().hex)
        else:
            kind = (str(event.user_id), str(event.item_id), order, event.event_type)
            ids.append(event_id_of(*kind, seen[kind]))
            seen[kind] += 1
    return ids


def _row_of(event: Event, event_id: str, received_us: int) -> tuple[object, ...]:
    is_clamped = event.time_us is not None and event.time_us > received_us + FUTURE_TOLERANCE_US
    has_time = event.position is None
    time_us = received_us if is_clamped or event.time_us is None else event.time_us
    return (
        event_id,
        *key_of(event.user_id),
        *key_of(event.item_id),
        event.event_type,
        time_us if has_time else event.position,
        time_us if has_time else None,
        event.time_us if is_clamped else None,
        received_us,
        event.weight,
        event.session_id,
        event.request_id,
    )


def _insert_events(connection: sqlite3.Connection, rows: list[tuple[object, ...]]) -> list[str]:
    has_redacted = bool(connection.execute("SELECT EXISTS (SELECT 1 FROM redacted_ids)").fetchone()[0])
    return [_insert_event(connection, row, has_redacted) for row in rows]


def _insert_event(connection: sqlite3.Connection, row: tuple[object, ...], has_redacted: bool) -> str:
    if has_redacted and connection.execute(_IS_REDACTED, (_digest(str(row[0])),)).fetchone():
        return "duplicate"
    if connection.execute(_INSERT_EVENT, row).rowcount == 1:
        return "accepted"
    stored = connection.execute("SELECT user, item, event_type FROM events WHERE event_id = ?", row[:1]).fetchone()
    return "duplicate" if stored == (row[1], row[3], row[5]) else "conflict"


def _redact(connection: sqlite3.Connection, user: int | str) -> int:
    ids = connection.execute("SELECT event_id FROM events WHERE user = ?", (user,)).fetchall()
    digests = [(_digest(event_id),) for (event_id,) in ids]
    connection.executemany("INSERT OR IGNORE INTO redacted_ids VALUES (?)", digests)
    connection.execute(_REDACT_EVENTS, (user,))
    shown = connection.execute(_REDACT_IMPRESSIONS, (user,)).rowcount
    return len(ids) + shown


def _digest(event_id: str) -> str:
    return hashlib.blake2b(event_id.encode(), digest_size=16).hexdigest()


def _impression_row(impression: Impression, received_us: int) -> tuple[object, ...]:
    user = (None, 0) if impression.user_id is None else key_of(impression.user_id)
    return (
        impression.request_id,
        impression.kind,
        *user,
        _compact(impression.item_ids),
        _compact(impression.scores),
        impression.source,
        impression.model,
        impression.model_version,
        impression.delta_version,
        impression.propensity,
        impression.query_us,
        received_us,
    )


def _stored_event(row: Sequence[Any]) -> StoredEvent:
    offset, event_id, user, user_is_text, item, item_is_text, event_type, order_key, time_us, *rest = row
    claimed_us, received_us, weight, session_id, request_id = rest
    return StoredEvent(
        offset=offset,
        event_id=event_id,
        user_id=id_of(user, user_is_text),
        item_id=id_of(item, item_is_text),
        event_type=event_type,
        time_us=time_us,
        position=order_key if time_us is None else None,
        received_us=received_us,
        claimed_us=claimed_us,
        weight=weight,
        session_id=session_id,
        request_id=request_id,
    )


def _stored_impression(row: Sequence[Any]) -> StoredImpression:
    offset, request_id, kind, user, user_is_text, items, scores, source, model, version, delta, *rest = row
    propensity, query_us, received_us = rest
    impression = Impression(
        request_id=request_id,
        kind=kind,
        user_id=None if user is None else id_of(user, user_is_text),
        item_ids=json.loads(items),
        scores=json.loads(scores),
        source=source,
        model=model,
        model_version=version,
        delta_version=delta,
        propensity=propensity,
        query_us=query_us,
    )
    return StoredImpression(offset=offset, received_us=received_us, impression=impression)


def _compact(values: Sequence[object]) -> str:
    return json.dumps(list(values), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _check_text(name: str, text: str) -> None:
    if not text or len(text) > MAX_TEXT_CHARS or not text.isprintable():
        raise InputError(f"{name}={text[:40]!r}: wanted 1 to {MAX_TEXT_CHARS} printable characters")


_EVENT_COLUMNS = (
    "event_id, user, user_is_text, item, item_is_text, event_type, order_key, time_us, claimed_us, received_us, "
    "weight, session_id, request_id"
)
_INSERT_EVENT = (
    f"INSERT INTO events ({_EVENT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (event_id) DO NOTHING"
)
_IS_REDACTED = "SELECT 1 FROM redacted_ids WHERE digest = ?"
_READ_EVENTS = (
    f"SELECT offset, {_EVENT_COLUMNS} FROM events WHERE offset > ? AND user IS NOT NULL ORDER BY offset LIMIT ?"
)
_HISTORY = (
    "SELECT item, item_is_text, time_us FROM events WHERE user = ? AND (time_us IS NULL OR time_us <= ?) "
    "ORDER BY order_key DESC, offset DESC LIMIT ?"
)
_REDACT_EVENTS = (
    "UPDATE events SET event_id = 'redacted-' || offset, user = NULL, item = NULL, weight = NULL, session_id = NULL, "
    "request_id = NULL WHERE user = ?"
)
_IMPRESSION_COLUMNS = (
    "request_id, kind, user, user_is_text, items, scores, source, model, model_version, delta_version, propensity, "
    "query_us, received_us"
)
_INSERT_IMPRESSION = f"INSERT INTO impressions ({_IMPRESSION_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
_READ_IMPRESSIONS = (
    f"SELECT offset, {_IMPRESSION_COLUMNS} FROM impressions WHERE offset > ? AND items IS NOT NULL "
    "ORDER BY offset LIMIT ?"
)
_REDACT_IMPRESSIONS = "UPDATE impressions SET user = NULL, items = NULL, scores = NULL WHERE user = ?"
_STATS = "SELECT count(user), count(DISTINCT user), count(claimed_us), count(*) - count(user), max(offset) FROM events"

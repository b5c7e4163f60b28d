"""The journal's tables in SQL: events and impressions into rows and back."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from recsys.features.journal.events import Event, Impression, StoredEvent, StoredImpression
from recsys.features.journal.file import id_of, key_of

FUTURE_TOLERANCE_US = 60_000_000  # clocks of clients differ; further ahead is a wrong clock

_EVENT_COLUMNS = (
    "event_id, user, user_is_text, item, item_is_text, event_type, order_key, time_us, claimed_us, received_us, "
    "weight, session_id, request_id"
)
_INSERT_EVENT = (
    f"INSERT INTO events ({_EVENT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (event_id) DO NOTHING"
)
_IS_REDACTED = "SELECT 1 FROM redacted_ids WHERE digest = ?"
READ_EVENTS = (
    f"SELECT offset, {_EVENT_COLUMNS} FROM events WHERE offset > ? AND user IS NOT NULL ORDER BY offset LIMIT ?"
)
HISTORY = (
    "SELECT item, item_is_text, time_us, event_type FROM events WHERE user = ? AND (time_us IS NULL OR time_us <= ?) "
    "ORDER BY order_key DESC, offset DESC LIMIT ?"
)
# char(1) is not printable, so no event that is handed in can have the id of a redacted row.
_REDACT_EVENTS = (
    "UPDATE events SET event_id = char(1) || 'redacted-' || offset, user = NULL, item = NULL, weight = NULL, "
    "session_id = NULL, request_id = NULL WHERE user = ?"
)
_IMPRESSION_COLUMNS = (
    "request_id, kind, user, user_is_text, items, scores, source, model, model_version, delta_version, propensity, "
    "query_us, received_us"
)
INSERT_IMPRESSION = f"INSERT INTO impressions ({_IMPRESSION_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
READ_IMPRESSIONS = (
    f"SELECT offset, {_IMPRESSION_COLUMNS} FROM impressions WHERE offset > ? AND items IS NOT NULL "
    "ORDER BY offset LIMIT ?"
)
_REDACT_IMPRESSIONS = "UPDATE impressions SET user = NULL, items = NULL, scores = NULL WHERE user = ?"
STATS = "SELECT count(user), count(DISTINCT user), count(claimed_us), count(*) - count(user), max(offset) FROM events"


def event_row(event: Event, event_id: str, received_us: int) -> tuple[object, ...]:
    """The row of an event; a time in the future is clamped to `received_us` and the claimed one kept."""
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


def insert_events(connection: sqlite3.Connection, rows: list[tuple[object, ...]]) -> list[str]:
    """What became of each row: accepted, duplicate or conflict."""
    has_redacted = bool(connection.execute("SELECT EXISTS (SELECT 1 FROM redacted_ids)").fetchone()[0])
    return [_insert_event(connection, row, has_redacted) for row in rows]


def _insert_event(connection: sqlite3.Connection, row: tuple[object, ...], has_redacted: bool) -> str:
    if has_redacted and connection.execute(_IS_REDACTED, (_digest(str(row[0])),)).fetchone():
        return "duplicate"
    if connection.execute(_INSERT_EVENT, row).rowcount == 1:
        return "accepted"
    stored = connection.execute("SELECT user, item, event_type FROM events WHERE event_id = ?", row[:1]).fetchone()
    return "duplicate" if stored == (row[1], row[3], row[5]) else "conflict"


def redact(connection: sqlite3.Connection, user: int | str) -> int:
    """How many rows of the user (a stored key) were overwritten."""
    ids = connection.execute("SELECT event_id FROM events WHERE user = ?", (user,)).fetchall()
    digests = [(_digest(event_id),) for (event_id,) in ids]
    connection.executemany("INSERT OR IGNORE INTO redacted_ids VALUES (?)", digests)
    connection.execute(_REDACT_EVENTS, (user,))
    shown = connection.execute(_REDACT_IMPRESSIONS, (user,)).rowcount
    return len(ids) + shown


def _digest(event_id: str) -> str:
    return hashlib.blake2b(event_id.encode(), digest_size=16).hexdigest()


def impression_row(impression: Impression, received_us: int) -> tuple[object, ...]:
    """The row of an impression."""
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


def stored_event(row: Sequence[Any]) -> StoredEvent:
    """The event behind a row of READ_EVENTS."""
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


def stored_impression(row: Sequence[Any]) -> StoredImpression:
    """The impression behind a row of READ_IMPRESSIONS."""
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

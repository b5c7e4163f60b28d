"""The SQLite file behind the journal: its tables, how it is opened, and who may write.

A folder holds `journal.db` (with `-wal` and `-shm` beside it while it is open) and `journal.lock`, held by the one
writer for as long as it lives; the kernel frees it when the process dies, however it dies.

Ids keep what they were: an id is stored as an integer where its text is that integer's, else as text, and a flag says
that it came as text. So 7 and "7" are the same user, and each comes back as it was given.
"""

import fcntl
import os
import re
import secrets
import sqlite3
import time
from pathlib import Path
from typing import IO

from recsys.errors import DataError, InputError

FILE = "journal.db"
LOCK = "journal.lock"
FORMAT_VERSION = 1
APPLICATION_ID = 0x52435359  # "RCSY", so that another SQLite file is told apart
MAX_ID_CHARS = 1_024
BUSY_S = 1.0

_INTEGER = re.compile(r"-?[1-9][0-9]{0,18}|0")
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (
  offset INTEGER PRIMARY KEY,
  event_id TEXT NOT NULL UNIQUE,
  user, user_is_text INTEGER NOT NULL,
  item, item_is_text INTEGER NOT NULL,
  event_type TEXT NOT NULL,
  order_key INTEGER NOT NULL,
  time_us INTEGER,
  claimed_us INTEGER,
  received_us INTEGER NOT NULL,
  weight REAL, session_id TEXT, request_id TEXT
);
CREATE INDEX events_of_user ON events (user, order_key);
CREATE TABLE impressions (
  offset INTEGER PRIMARY KEY,
  request_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  user, user_is_text INTEGER NOT NULL,
  items TEXT, scores TEXT,
  source TEXT NOT NULL, model TEXT NOT NULL, model_version TEXT NOT NULL, delta_version TEXT,
  propensity REAL NOT NULL,
  query_us INTEGER NOT NULL, received_us INTEGER NOT NULL
);
CREATE INDEX impressions_of_user ON impressions (user);
CREATE INDEX impressions_of_request ON impressions (request_id);
CREATE TABLE redacted_ids (digest TEXT PRIMARY KEY) WITHOUT ROWID;
"""


def key_of(raw_id: int | str) -> tuple[int | str, int]:
    """What is stored for a raw id: its key, and whether it came as text."""
    if isinstance(raw_id, int):
        return raw_id, 0
    if _INTEGER.fullmatch(raw_id) and -(2**63) <= int(raw_id) < 2**63:
        return int(raw_id), 1
    return raw_id, 1


def id_of(key: int | str, is_text: int) -> int | str:
    """The raw id behind a stored key."""
    return str(key) if is_text else key


def check_id(name: str, raw_id: object) -> None:
    """Refuse what cannot be a raw id.

    Raises:
        InputError: not an integer or text, empty, too long, beyond 64 bits, or text that is no valid Unicode.
    """
    if isinstance(raw_id, bool) or not isinstance(raw_id, int | str):
        raise InputError(f"{name}={raw_id!r}: wanted an integer or text, got {type(raw_id).__name__}")
    if isinstance(raw_id, int):
        if not -(2**63) <= raw_id < 2**63:
            raise InputError(f"{name}={raw_id}: beyond 64 bits; send it as text")
        return
    if not raw_id or len(raw_id) > MAX_ID_CHARS:
        raise InputError(f"{name}: {len(raw_id)} characters long, wanted 1 to {MAX_ID_CHARS}")
    try:
        raw_id.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}={raw_id!r}: not valid Unicode text") from error


def lock_folder(folder: Path) -> IO[str]:
    """The open lock file of `folder`, made when missing; closing it frees the lock.

    Raises:
        InputError: another writer holds the folder (it is named), or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  # held for the life of the writer
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be a journal folder ({error.strerror}); name a folder you may write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise InputError(
            f"{folder}: this journal is written by {holder}; stop it first, or post the events to its /v1/feedback"
        ) from error
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC")
    lock.flush()
    return lock


def open_writer(folder: Path) -> sqlite3.Connection:
    """A writing connection to the journal of `folder`, made when missing: WAL, `synchronous=FULL`.

    Raises:
        DataError: the file is damaged (all of it is read: half a second for a million events), is no journal, or has an
            unknown format version.
    """
    path = folder / FILE
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        for pragma in (
            "synchronous=FULL",
            "fullfsync=ON",
            "secure_delete=ON",
            "wal_autocheckpoint=0",
            "cache_size=-65536",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA journal_size_limit={64 << 20}")
        if _is_empty(connection):
            _create(connection, folder)
        _check_format(connection, path)
        _check_pages(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, error) from error
    except DataError:
        connection.close()
        raise
    return connection


def open_reader(folder: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint.

    Raises:
        DataError: there is no journal, or it is damaged, or of an unknown format version.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{folder}: no journal here; `recsys ingest` or `recsys serve` with this folder starts one")
    address = f"{path.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        _check_format(connection, path)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(path, error) from error
    except DataError:
        connection.close()
        raise
    return connection


def _is_empty(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) = 0 FROM sqlite_master").fetchone()[0])


def _create(connection: sqlite3.Connection, folder: Path) -> None:
    header = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT_VERSION};"
    writer = f"INSERT INTO meta VALUES ('writer', '{secrets.token_hex(8)}');"
    connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {writer} {header} COMMIT;")
    for name in (folder, folder.parent):  # the names themselves must outlive a power cut
        handle = os.open(name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DataError(f"{path}: an SQLite file, but no journal; name another folder")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: journal format {version}, this version reads {FORMAT_VERSION}; upgrade recsys-platform"
        )


def _check_pages(connection: sqlite3.Connection) -> None:
    problem = " ".join(str(connection.execute("PRAGMA quick_check(1)").fetchone()[0]).split())
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)


def _damaged(path: Path, error: sqlite3.DatabaseError) -> DataError:
    return DataError(f"{path}: damaged, or no journal ({error}); restore it from a backup, or name another folder")

"""One writing thread on one SQLite connection: jobs that wait together share a commit.

A job is a function of the connection; it runs inside a transaction and its answer is handed back only after the commit
is on disk (`synchronous=FULL`). While one commit waits for the disk the next jobs gather, so the rate of jobs is not
bounded by the rate of fsyncs. The same thread and connection also checkpoint the write-ahead log; nobody else does.

A commit, a job or a checkpoint that fails poisons the writer: after a failed fsync the kernel may have thrown the dirty
pages away while a second fsync reports success, so nothing is retried. A restart reads what truly is on disk.

One failure says nothing about the disk: a job that breaks a rule of the tables (sqlite3.IntegrityError). It gets the
error alone; the transaction is rolled back and the other jobs run again without it, so a job may run more than once.
"""

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from recsys.errors import JournalError

T = TypeVar("T")
MAX_JOBS = 256  # that share one commit
CHECKPOINT_CHANGES = 2_000  # changed rows between two checkpoints
CHECKPOINT_COMMITS = 500  # commits between two checkpoints


@dataclass(frozen=True)
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    future: Future[Any]
    truncates: bool


class GroupCommit:
    """The writer of one SQLite file.

    Args:
        connection: opened with `isolation_level=None` and `check_same_thread=False`; owned by the writer from here on.
        name: how messages name the file.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._is_closed = False
        self._checkpointed_changes = connection.total_changes
        self._commits = 0
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._loop, name=f"journal-writer {name}", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[sqlite3.Connection], T], timeout_s: float | None = None, truncates: bool = False) -> T:
        """What `job` answered, once its transaction is committed to disk.

        Args:
            job: writes through the connection it is given; must not commit; may run more than once.
            timeout_s: longest wait, in seconds; None waits as long as it takes.
            truncates: also empty the write-ahead log, so that overwritten rows are in no file any more.

        Raises:
            JournalError: the writer is poisoned or closed, or the commit took longer than `timeout_s`.
            sqlite3.IntegrityError: `job` broke a rule of the tables; nothing of it is stored.
        """
        future: Future[Any] = Future()
        with self._gate:
            self._check()
            self._jobs.put(_Job(job, future, truncates))
        try:
            return cast(T, future.result(timeout_s))
        except TimeoutError as error:
            raise JournalError(
                f"{self._name}: no commit within {timeout_s:g} s; it may still come: repeat the events with their ids"
            ) from error

    def fail(self, reason: str) -> None:
        """Refuse every job from here on; what has failed before keeps its reason."""
        with self._gate:
            self.failure = self.failure or reason

    def close(self) -> None:
        """Finish the waiting jobs, then stop the thread and close the connection. A second call does nothing."""
        with self._gate:
            if self._is_closed:
                return
            self._is_closed = True
            self._jobs.put(None)
        self._thread.join()
        self._connection.close()

    def _check(self) -> None:
        if self.failure is not None:
            raise JournalError(f"{self._name}: {self.failure}")
        if self._is_closed:
            raise JournalError(f"{self._name}: the journal is closed")

    def _loop(self) -> None:
        while (jobs := self._take()) is not None:
            if self.failure is not None:
                self._refuse(jobs)
                continue
            try:
                self._commit(jobs)
                self._checkpoint_when_due()
            except BaseException as error:
                self._poison(error)
                self._refuse(jobs)

    def _take(self) -> list[_Job] | None:
        first = self._jobs.get()
        if first is None:
            return None
        jobs = [first]
        while len(jobs) < MAX_JOBS and not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                self._jobs.put(None)
                break
            jobs.append(job)
        return jobs

    def _commit(self, jobs: list[_Job]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        answers: list[Any] = []
        while len(answers) < len(jobs):
            job = jobs[len(answers)]
            try:
                answers.append(job.run(self._connection))
            except sqlite3.IntegrityError as error:
                self._connection.execute("ROLLBACK")
                job.future.set_exception(error)
                jobs = [other for other in jobs if other is not job]
                answers = []
                self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("COMMIT")
        self._commits += 1
        emptied = self._truncate() if any(job.truncates for job in jobs) else True
        for job, answer in zip(jobs, answers, strict=True):
            if job.truncates and not emptied:
                job.future.set_exception(JournalError(_BUSY.format(name=self._name)))
            else:
                job.future.set_result(answer)

    def _truncate(self) -> bool:
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _checkpoint_when_due(self) -> None:
        changes = self._connection.total_changes
        if changes - self._checkpointed_changes >= CHECKPOINT_CHANGES or self._commits >= CHECKPOINT_COMMITS:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._checkpointed_changes, self._commits = changes, 0

    def _poison(self, error: BaseException) -> None:
        self.fail(f"a write failed ({type(error).__name__}: {error}); nothing is retried: mend the disk, then restart")
        # The transaction is left open: rolling back would write to a file that can no longer be trusted.

    def _refuse(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(JournalError(f"{self._name}: {self.failure}"))


_BUSY = "{name}: redacted, but a long-running reader still holds older pages; stop it and forget once more"

"""A trainer's incremental checkpoint: a base and the deltas after it, each durable before it is served.

    log = DeltaLog(folder, bundle)
    if log.is_empty: log.start(tables, dense, extra)
    else:            restored = log.restore(tables)
    ... steps ...
    log.append(dense, extra)         or log.cut(...), cut.copy(...) between steps, log.write(cut.delta()) on any thread
    log.abandon()                    where a cut is lost before it was written
    log.compact()                    on any thread

    folder/  epoch.json  base-000000000000.delta  delta-000000000001.delta  …

`restore` begins an epoch: a trainer of an older one that still runs can write no more (StaleError).
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from recsys.errors import DeltaError, StaleError
from recsys.files import storage_errors
from recsys.models.delta.chain import chain, sequences
from recsys.models.delta.cut import GENERATOR, Cut, Source, Tracker, check_sources, table_of, unknown_of
from recsys.models.delta.delta import Delta, Version, file_name
from recsys.models.delta.files import Files, drafted, or_os, put_in_place, write_durably
from recsys.models.delta.fold import Folded
from recsys.models.delta.rows import MEMORY_BYTES, part_of
from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable

EPOCH_FILE = "epoch.json"
WAITS = "the delta waits in memory; free some disk space and call flush"
COMES_AGAIN = "the delta is dropped; free some disk space: the next one is a base, which holds what it held"
NO_CUT = "nothing was cut; free some disk space and cut again"
STAYS = "the log stays as it was; free some disk space and compact it again"


@dataclass(frozen=True)
class Restored:
    """Where a trainer goes on.

    Attributes:
        version: the last durable one.
        dense: all parameters.
        extra: of the last delta.
    """

    version: Version
    dense: Mapping[str, Tensor]
    extra: Mapping[str, Any]


class DeltaLog:
    """A folder of deltas, with one writer.

    Args:
        folder: the trainer's own.
        bundle: sha256 of the bundle that the model began with.
        published: folder for servers; each delta is written there without the trainer's state once it is durable here.
        files: what files are worked on by.
        memory_bytes: for rows that are on their way. A cut of more rows is copied to a file without a name in the
            folder, `append` writes it from the table; files are put together and loaded part by part.

    Raises:
        DeltaError: `memory_bytes` is no whole number of at least 1.
    """

    def __init__(
        self,
        folder: Path | str,
        bundle: str,
        *,
        published: Path | str | None = None,
        files: Files | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 1:
            raise DeltaError(f"memory_bytes={memory_bytes!r}; wanted a whole number of bytes, at least 1")
        self.folder, self.published = Path(folder), None if published is None else Path(published)
        self._bundle, self._files, self._memory_bytes = bundle, or_os(files), memory_bytes
        self._epoch = 0
        self._tracker = self._new_tracker({})
        self._written: Version | None = None
        self._waiting: deque[Delta] = deque()
        self._writing, self._compacting = threading.Lock(), threading.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore."""
        return not sequences(self.folder, self._files, "base")

    @property
    def version(self) -> Version | None:
        """The last durable one that this writer wrote or restored."""
        return self._written

    def start(self, tables: Mapping[str, Source], dense: Mapping[str, Tensor], extra: Mapping[str, Any]) -> Version:
        """Write all there is as the base.

        Raises:
            DeltaError: there is a log here already, another log follows a table, or `cut` would refuse this. The tables
                are as they were.
            StorageError: the disk is full or failed.
        """
        if not self.is_empty:
            raise DeltaError(f"{self.folder}: holds deltas; restore from them, or name another folder")
        tracker = self._new_tracker(tables)
        self._tracker.abandon()
        tracker.check(dense, extra, {})
        for folder in self._folders:
            self._files.make_folder(folder)
        with self._files.locked(self.folder):
            self._begin_epoch()
        self._tracker = tracker
        return self.append(dense, extra)

    def restore(self, tables: Mapping[str, Source]) -> Restored:
        """Load the last durable version into tables of the same configuration, and begin an epoch.

        Raises:
            DeltaError: a file is damaged, of another bundle, or names other tables; or one table's state does not fit:
                then all tables are as they were.
            GapError: a delta in the middle is missing.
        """
        if self.is_empty:
            raise DeltaError(f"{self.folder}: no base here; `start` writes one")
        check_sources(tables)
        with self._files.locked(self.folder):  # an older trainer writes before it, or not at all
            folded = self._folded(tables)
            self._begin_epoch()
        assert folded.version is not None
        self._tracker = self._new_tracker(tables)
        parts = {name: table.parts for name, table in folded.tables.items()}
        self._tracker.resume(folded.version, folded.dense, parts)
        self._written = folded.version
        return Restored(folded.version, dict(folded.dense), folded.extra)

    def cut(
        self,
        dense: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        raw_ids: Mapping[str, Mapping[int, str]] | None = None,
    ) -> Cut:
        """What changed since the last cut, between two steps; `write` takes its delta.

        Args:
            dense: all parameters.
            extra: tensors and JSON values, see `Delta`.
            raw_ids: what new ids are the hash of, by table.

        Raises:
            DeltaError: the log was neither started nor restored, a value is none that a file holds, gradients wait
                for a step, the last cut's rows are still being copied, or another log follows a table meanwhile.
                Nothing is changed.
            StorageError: the rows are more than `memory_bytes`, and the disk has no room for them. Nothing is changed.
        """
        with storage_errors(self.folder, NO_CUT):
            return self._cut(dense, extra, raw_ids, lambda size: self._files.scratch(self.folder, size))

    def abandon(self) -> None:
        """The last cut is lost, or will not be written: the next one is a base, and follows whatever was written.

        Until then another log may `start` on the tables, which are no longer this one's.
        """
        self._tracker.abandon()

    def append(
        self,
        dense: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        raw_ids: Mapping[str, Mapping[int, str]] | None = None,
    ) -> Version:
        """`cut` and `write` in one: when it returns the version is durable, and served.

        Raises:
            DeltaError: see `cut`.
            StaleError: another trainer took over.
            StorageError: the disk is full or failed. The delta waits, see `write`; one whose rows are more than
                `memory_bytes` is dropped, and the next cut is a base.
        """
        cut = self._cut(dense, extra, raw_ids)
        if cut.num_bytes <= self._memory_bytes:
            self.write(cut.delta())
            return cut.version
        try:
            self._write(cut.in_place(), COMES_AGAIN)
        except BaseException:
            self.abandon()
            raise
        finally:
            cut.cancel()
        return cut.version

    def write(self, delta: Delta) -> None:
        """Make a cut's delta durable, then publish it; in the order of the cuts, on any thread.

        Raises:
            DeltaError: it is not the one that follows; it is not kept.
            StaleError: another trainer took over.
            StorageError: the disk is full or failed; the delta waits, and `flush`, or the next write, writes it first.
        """
        self._write(delta)

    def flush(self) -> None:
        """Write what waits since a write failed."""
        with self._writing:
            self._flush()

    def compact(self) -> Version:
        """Write a base of all that is durable, then remove what it holds; training and appending go on meanwhile.

        Rows are read from the files and put together block by block.

        Raises:
            StaleError: another trainer took over.
            StorageError: the disk is full or failed; the log stays as it was.
        """
        with self._compacting:
            base = read_log(self.folder, self._files, self._memory_bytes).as_base()
            self._place(base, STAYS)
            for folder in self._folders:
                self._remove_before(folder, base.sequence)
            return base.version

    @property
    def _folders(self) -> list[Path]:
        return [self.folder] if self.published is None else [self.folder, self.published]

    def _new_tracker(self, tables: Mapping[str, Source]) -> Tracker:
        return Tracker(tables, self._bundle, self._memory_bytes, str(self.folder))

    def _cut(
        self,
        dense: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        raw_ids: Mapping[str, Mapping[int, str]] | None,
        scratch: Callable[[int], BinaryIO] | None = None,
    ) -> Cut:
        if self._epoch == 0:
            raise DeltaError(f"{self.folder}: start the log, or restore from it, before the first delta")
        before = self._tracker.version
        sequence = 0 if before is None else before.sequence + 1
        return self._tracker.cut(Version(self._epoch, sequence), dense, extra, raw_ids or {}, scratch)

    def _write(self, delta: Delta, remedy: str = WAITS) -> None:
        """Those that wait, then this one; it waits where that fails, but for one that is to be dropped."""
        with self._writing:
            last = self._waiting[-1].version if self._waiting else self._written
            if delta.since is not None and delta.since != last:
                raise DeltaError(
                    f"{delta.version} follows {delta.since}, but {last} was written last; write the cuts in their "
                    "order, or abandon what is lost: the next is a base"
                )
            if remedy == WAITS:
                self._waiting.append(delta)
            self._flush()
            if remedy != WAITS:
                self._place(delta, remedy)
                self._written = delta.version

    def _flush(self) -> None:
        while self._waiting:
            delta = self._waiting[0]
            self._place(delta, WAITS)
            self._written = delta.version
            self._waiting.popleft()

    def _place(self, delta: Delta, remedy: str) -> None:
        places = [(self.folder, delta)]
        if self.published is not None:
            places.append((self.published, delta.without_state()))
        for folder, written in places:
            path = folder / written.name
            with storage_errors(path, remedy):
                body = written.body()
                draft = drafted(self._files, path, body, body.line)
                with self._files.locked(self.folder):
                    self._check_epoch(draft)
                    put_in_place(self._files, draft, path)

    def _folded(self, tables: Mapping[str, Source]) -> Folded:
        """What the files hold, loaded into the tables."""
        folded = Folded(self._memory_bytes)
        for delta in chain(self.folder, self._files, part_of(self._memory_bytes)):
            if delta.bundle != self._bundle:
                raise DeltaError(f"{self.folder}: of bundle {delta.bundle}; wanted {self._bundle}")
            folded.apply(delta)
            self._publish_missing(delta)
        assert folded.version is not None
        if folded.tables.keys() != tables.keys():
            raise DeltaError(f"{self.folder}: has tables {sorted(folded.tables)}; wanted {sorted(tables)}")
        for name, source in tables.items():
            check_fit(folded, name, source)
        for name, source in tables.items():
            load(folded, name, source)
        for number in sequences(self.folder, self._files, "delta"):
            if number > folded.version.sequence:  # torn
                self._files.remove(self.folder / file_name(number, is_base=False))
        return folded

    def _publish_missing(self, delta: Delta) -> None:
        if self.published is None:
            return
        self._files.make_folder(self.published)
        if delta.name not in self._files.names(self.published):
            delta.without_state().write(self.published / delta.name, self._files)

    def _remove_before(self, folder: Path, sequence: int) -> None:
        for kind, last in (("base", sequence - 1), ("delta", sequence)):
            for number in sequences(folder, self._files, kind):
                if number <= last:
                    self._files.remove(folder / file_name(number, is_base=kind == "base"))

    def _begin_epoch(self) -> None:
        """While the folder is locked."""
        for folder in self._folders:
            for name in self._files.names(folder):
                if name.startswith(".") and name.endswith(".tmp"):  # of a process that was killed, or is about to stop
                    self._files.remove(folder / name)
        self._epoch = self._stored_epoch() + 1
        text = json.dumps({"epoch": self._epoch}).encode() + b"\n"
        write_durably(self._files, self.folder / EPOCH_FILE, [text])

    def _check_epoch(self, draft: Path) -> None:
        stored = self._stored_epoch()
        if stored != self._epoch:
            self._files.remove(draft)
            raise StaleError(
                f"{self.folder}: a trainer of epoch {stored} took over, this is one of epoch {self._epoch}; stop it"
            )

    def _stored_epoch(self) -> int:
        if EPOCH_FILE not in self._files.names(self.folder):
            if not self.is_empty:
                raise DeltaError(f"{self.folder}: {EPOCH_FILE} is missing; bring it back, or name another folder")
            return 0
        content = self._files.read(self.folder / EPOCH_FILE)
        try:
            return int(json.loads(content)["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise DeltaError(f"{self.folder / EPOCH_FILE}: damaged; bring it back, or name another folder") from error


def read_log(folder: Path | str, files: Files | None = None, memory_bytes: int = MEMORY_BYTES) -> Folded:
    """The last durable version of a log, for whoever writes none; its rows stay in the files until they are asked for.

    Args:
        folder: of the log.
        files: by which it is read.
        memory_bytes: for rows that are on their way.

    Raises:
        DeltaError: a file is damaged.
        GapError: one in the middle is missing.
    """
    folded = Folded(memory_bytes)
    for delta in chain(folder, files, part_of(memory_bytes)):
        folded.apply(delta)
    return folded


def load(folded: Folded, name: str, source: Source) -> None:
    """Load a folded table into a table or a module of the same configuration.

    Raises:
        DeltaError: it does not fit; the source is as it was.
    """
    check_fit(folded, name, source)
    of_log, table = folded.tables[name], table_of(source)
    state = of_log.outline(table)
    try:
        table.load_state({part: value for part, value in state.items() if part != GENERATOR}, of_log.blocks(table))
    except ValueError as error:
        raise DeltaError(f"the log's {name!r} does not fit: {error}") from error
    if isinstance(source, CollisionlessEmbedding):
        source.drop_gradients()
        source.generator.set_state(state[GENERATOR])
        if source.unknown is not None and of_log.unknown is not None:
            with torch.no_grad():
                source.unknown.copy_(of_log.unknown)


def check_fit(folded: Folded, name: str, source: Source) -> None:
    """Whether a folded table can be loaded into a table or a module; both are as they were.

    Raises:
        DeltaError: it does not fit.
    """
    of_log, table = folded.tables[name], table_of(source)
    if isinstance(source, CollisionlessEmbedding) and GENERATOR not in of_log.parts:
        raise DeltaError(f"the log's {name!r} is of a table; wanted one of a CollisionlessEmbedding")
    has_learned = unknown_of(source) is not None
    if has_learned != (of_log.unknown is not None):
        has, wanted = ("no", "one") if has_learned else ("a", "none")
        raise DeltaError(
            f"the log's {name!r} has {has} learned unknown vector; wanted {wanted}, as what it is loaded into"
        )
    if table.pages.before_write is not None:
        raise DeltaError(f"rows of {name!r} are still being copied for a cut; finish it, or abandon it, first")
    capacity = table.config.capacity
    if capacity is not None and of_log.num_ids > capacity:
        raise DeltaError(
            f"the log's {name!r} does not fit: there are {of_log.num_ids} ids; wanted at most capacity={capacity}"
        )
    # A table of the same configuration takes all but the rows, and refuses what this one would refuse.
    other = EmbeddingTable(replace(table.config, expected=0, hot_rows=None, cold_file=None), page_rows=1)
    try:
        other.load_state({part: value for part, value in of_log.outline_of_none().items() if part != GENERATOR})
    except ValueError as error:
        raise DeltaError(f"the log's {name!r} does not fit: {error}") from error

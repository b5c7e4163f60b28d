"""Rows by id: which ids have one, what it holds, and when it goes.

    look_up     rows of ids for a training step: new ids are admitted and get rows, the full table makes room
    find        rows of ids, nothing changes
    update      one step of the optimizer for rows
    expire      rows past their time to live go
    changes     rows touched and ids forgotten since a tick, for a delta

An id that finds no row is counted by reason, never dropped in silence. The same stream of calls and times gives the
same table, bit for bit, on any number of threads.

Paper: Liu et al. 2022, arXiv:2209.07663.
Differs: look-up in training gives the row at once, where Monolith's gives zeros until the first gradient; admission
counts are exact; expiry is in seconds; what is deleted is told to those who follow.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recsys.kernels.hash_table import HashTable, Inserted
from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_pages.pages import default_page_rows
from recsys.kernels.row_scan import scan_rows
from recsys.models.embedding_table import table_state
from recsys.models.embedding_table.admission import build_admission
from recsys.models.embedding_table.clock import MOST_TICKS, Clock
from recsys.models.embedding_table.config import TableConfig
from recsys.models.embedding_table.deleted_ids import DeletedIds
from recsys.models.embedding_table.eviction import EvictionQueue
from recsys.models.embedding_table.prior import Prior
from recsys.models.embedding_table.state_checks import Stateful
from recsys.models.embedding_table.table_state import Block
from recsys.models.embedding_table.time_to_live import TimeToLive

if TYPE_CHECKING:
    from recsys.models.embedding_table.cold_rows import ColdRows

EXPIRY_ROWS = 1 << 20  # looked at in one go


@dataclass
class Counts:
    """What happened to ids so far.

    Attributes:
        inserted: ids that got a row.
        not_admitted: sightings of ids that admission did not let in yet.
        refused: sightings of ids that found the table full.
        evicted, expired, erased: ids that lost their row, for room, for age, by the caller.
        unknown: look-ups without a row, in evaluation.
    """

    inserted: int = 0
    not_admitted: int = 0
    refused: int = 0
    evicted: int = 0
    expired: int = 0
    erased: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Changes:
    """What followers of a table must be told.

    Attributes:
        rows: (M,) int64, ascending: rows touched at the tick or later.
        deleted: (K,) int64, ascending, each once: ids that lost their row at the tick or later, and have none.
    """

    rows: Tensor
    deleted: Tensor


class EmbeddingTable:
    """Ids, rows, admission, eviction and expiry.

    Args:
        config: how it is to behave.
        page_rows: rows of a page, a power of two; by default the fewest that take 2 MB.
        device: of ids and rows.
    """

    def __init__(
        self, config: TableConfig, *, page_rows: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.seed = config.seed  # of new rows; that of a state from where one was loaded
        self.shard: tuple[int, int] | None = None  # its number from 0, and of how many; None: it was never split
        self.split: int | None = None  # of which state it is a shard, as `split_state` says
        self.index = HashTable(max_rows=config.capacity, expected=config.expected, device=device)
        if page_rows is None and config.capacity is not None:
            page_rows = min(default_page_rows(config.width), 1 << (config.capacity - 1).bit_length())
        self.cold = _new_cold_rows(config, page_rows, self.device)
        self.pages = _new_pages(config, page_rows, self.device) if self.cold is None else self.cold
        self.clock = Clock()
        self.prior: Prior | None = None  # where new rows start
        self.counts = Counts()
        self._admission = build_admission(config.admission, config.seed)
        self._time_to_live = TimeToLive(config, self.clock)
        self._eviction = self._new_eviction()
        self._spent: list[int] | None = None  # what `first_kept` was when no row was left that is too old
        self.times_freed = 0  # while it stays, every row is the id's that it was
        self.times_renumbered = 0  # ticks that were read before are no longer those of the same steps
        self._deleted = DeletedIds()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles.

        Raises:
            TypeError: there is a cold file.
        """
        return vars(self) if self.cold is None else self.cold.__getstate__()  # refused before the index is copied

    def __len__(self) -> int:
        """How many ids have a row."""
        return len(self.index)

    @property
    def num_rows(self) -> int:
        """One more than the highest row that was ever given."""
        return self.index.num_rows

    @property
    def num_bytes(self) -> int:
        """Memory of index and rows, of the sightings that admission counts, and of the rows that are to go next."""
        beside = [part.num_bytes for part in (self._admission, self._eviction) if part is not None]
        return self.index.num_bytes + self.pages.num_bytes + sum(beside)

    def find(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of ids (N,) int64, -1 for unknown ones, which are counted."""
        rows = self.index.find(ids)
        self.counts.unknown += int((rows < 0).sum())
        return rows

    def look_up(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of ids (N,) int64 for a training step; -1 for one that is not admitted, or finds no room."""
        num_rows = self.num_rows
        if self._is_plain:
            refused = self.index.num_refused
            inserted = self.index.find_or_insert(ids)
            self.counts.refused += self.index.num_refused - refused
        else:
            inserted = self._selected(ids)
        new = inserted.new
        if self.config.has_ttl and self._eviction is None:  # one that evicts has touched them
            known = torch.where(inserted.rows < self.pages.num_rows, inserted.rows, -1)
            self.pages.ticks.put_all(known, self.clock.tick)
        if len(new):
            try:
                self.pages.grow(self.num_rows)
                self._begin(inserted.rows[new], ids[new])
            except BaseException:  # no memory, or the prior failed: an id without a row of its own would never train
                rows = self.index.withdraw(ids[new], num_rows)
                self.pages.free(rows[rows < min(num_rows, self.pages.num_rows)])
                raise
            self.counts.inserted += len(new)
        return inserted.rows

    @property
    def _is_plain(self) -> bool:
        """Whether every new id gets a row, and no row must go for it."""
        return self._admission is None and self._eviction is None and self.cold is None

    def live(self, most: int | None = None) -> tuple[Tensor, Tensor]:
        """(M,) int64 ids and (M, width) float32 vectors of the rows that are not free, by row.

        Args:
            most: of more rows so many, evenly by their numbers; None: all.
        """
        rows = self.live_rows()
        if most is not None and len(rows) > most:
            rows = rows[torch.arange(most, device=rows.device) * len(rows) // most]
        return self.ids_of(rows), self.pages.gather(rows)

    @property
    def tick(self) -> int:
        """The running step."""
        return self.clock.tick

    def update(self, rows: Tensor, gradients: Tensor, lr: float) -> None:
        """One step of the optimizer for rows (N,) int64 by their gradients (N, width); they are touched.

        Rows below 0 and free ones are left out. Where a row was freed and given again since its look-up it is another
        id's; `times_freed` and `ids_of` tell.

        Raises:
            ValueError: `lr` is negative or no number, or rows and gradients do not fit; nothing is applied.
        """
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr={lr}; wanted at least 0")
        self.pages.update(rows, gradients, lr, self.clock.tick)

    def advance(self) -> None:
        """The step is over: what follows is of the next."""
        if self.clock.tick >= MOST_TICKS:
            self._renumber()
        else:
            self.clock.advance()
        if self.clock.is_long:
            self.clock.forget_before(int(self.pages.ticks.gather(self.live_rows()).min()) if len(self) else self.tick)

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows that ids (N,) int64 had and that hold nothing from here on; -1 for unknown ids.

        Raises:
            StorageError: something cut the cold file short; nothing changed.
        """
        rows = self._erased(ids)
        self.counts.erased += int((rows >= 0).sum())
        return rows

    def expire(self) -> int:
        """How many rows went because their time to live was over."""
        limits = self._time_to_live.first_kept
        if limits == self._spent or not any(limits):
            return 0
        total = 0
        for start in range(0, self.num_rows, EXPIRY_ROWS):
            stop = min(start + EXPIRY_ROWS, self.num_rows)
            old, ticks, _ = scan_rows(self.pages.ticks, None, start, stop, before=max(limits))
            if self.config.feature_ttl_s:
                old = old[self._is_expired(old, ticks)]
            if len(old):
                self._erased(self.ids_of(old))
                total += len(old)
        self.counts.expired += total
        self._spent = limits
        return total

    def ids_of(self, rows: Tensor) -> Tensor:
        """(N,) int64 ids of rows (N,) int64; 0 of one that is free, or below 0."""
        return self.pages.ids.gather(rows).squeeze(1)

    def live_rows(self) -> Tensor:
        """(M,) int64, ascending: the rows that are not free."""
        ticks = self.pages.all_of(self.pages.ticks, self.num_rows).squeeze(1)
        return (ticks >= 0).nonzero().squeeze(1)

    def follow(self, since: int | None = None) -> int:
        """The running tick: from it on `changes` can be asked for, between steps. Until then no deleted id is kept.

        Args:
            since: changes before this tick will not be asked for again; None: those that are kept stay.
        """
        self._deleted.follow(self.clock.tick, since)
        return self.clock.tick

    def changes(self, since: int) -> Changes:
        """What changed at tick `since` or later.

        Raises:
            ValueError: nobody followed the table since then, so that deleted ids are missing.
        """
        deleted = self._deleted.after(since).to(self.device)
        ticks = self.pages.all_of(self.pages.ticks, self.num_rows).squeeze(1)
        rows = (ticks >= max(since, 0)).nonzero().squeeze(1)
        return Changes(rows, deleted[self.index.find(deleted) < 0])

    def gauges(self) -> dict[str, float]:
        """Numbers for a dashboard: size, bytes, load, probe lengths, and all counts so far."""
        size = len(self)
        cold = {} if self.cold is None else {**self.cold.gauges(), "cold": size - self.cold.num_hot}
        return {
            "size": size,
            "free_rows": self.num_rows - size,
            "bytes": self.num_bytes,
            "bytes_per_id": self.num_bytes / size if size else 0.0,
            **self.index.gauges(),
            **vars(self.counts),
            **cold,
        }

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, free rows too: a table of the same config goes on from it bit for bit."""
        return table_state.state_of(self)

    def state_beside_rows(self) -> dict[str, Tensor]:
        """What of `state` is no row's: free rows, clock, admission, eviction, prior, counts, deleted ids; (N,) each."""
        return table_state.beside_rows(self)

    def load_state(self, state: Mapping[str, Tensor], blocks: Iterable[Block] = ()) -> None:
        """Take up what `state` gave, in place of all that is here. Nothing is changed if it does not fit.

        Args:
            state: all of it. Vectors and states on the device "meta" have a shape alone, and come in blocks.
            blocks: the first row, and vectors and states from there on, of all rows in their order. Where they end by
                an exception the table is empty.

        Raises:
            ValueError: the width, the optimizer's state or what is counted is another, there are more ids than the
                capacity, a part of the state cannot be, or the rows are being copied for a delta; the message names it.
            StorageError: the disk of the cold file is full; nothing is changed.
        """
        table_state.load(self, state, blocks)

    def close(self, version: str | None = None) -> dict[str, Tensor]:
        """Let go of the cold file, which holds all rows and is marked with the version, if there is one.

        Returns:
            With a version: `state` without vectors and states, with which `resume` goes on; else nothing.

        Raises:
            ValueError: the table has no cold file.
            StorageError: the file could not be made durable; it has no mark.
        """
        return table_state.close(self, version)

    def resume(self, state: Mapping[str, Tensor], version: str) -> None:
        """Go on with what `close` gave, and with the rows that the cold file holds, which are all read once.

        Raises:
            ValueError: the table has no cold file, or the state does not fit; nothing is changed.
            CheckpointError: the file bears no mark of a clean end, or another version's, or is damaged: then
                `load_state` with a whole state writes it anew. Nothing is changed.
        """
        table_state.resume(self, state, version)

    def parts(self) -> dict[str, Stateful]:
        """What has a state beside the rows, by its name there."""
        parts = {
            "clock": self.clock,
            "admission": self._admission,
            "eviction": self._eviction,
            "prior": self.prior,
            "deleted": self._deleted,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def begin_anew(self, seed: int, shard: tuple[int, int] | None, split: int | None, counts: Counts) -> None:
        """The rows are those of a state that is loaded: what was known of those of before is forgotten."""
        self.seed, self.shard, self.split, self.counts = seed, shard, split, counts
        self._spent = None
        self.times_freed += 1
        self.times_renumbered += 1  # whoever follows by ticks of before must begin anew
        self._eviction = self._new_eviction()

    def _selected(self, ids: Tensor) -> Inserted:
        """As find_or_insert, for the new ids that are admitted, after room was made for them."""
        claim = self.index.claim(ids)
        if self.cold is not None:  # a disk that is full, or failed, ends the call before anything changed
            self.cold.grow(min(self.index.max_rows, self.num_rows + len(claim.firsts)))
            self.cold.touch(claim.found)
        kept = None
        if self._admission is not None and len(claim.firsts):
            times = self._times_in_call(claim.found, claim.firsts)
            kept = self._admission.admit(ids[claim.firsts], times)
            self.counts.not_admitted += int(times[~kept].sum())
        known = claim.found[claim.found >= 0]
        if self._eviction is not None:
            self.pages.ticks.put_all(known, self.clock.tick)
            wanted = len(claim.firsts) if kept is None else int(kept.sum())
            self._make_room(wanted - self.index.room)
        refused = self.index.num_refused
        inserted = self.index.settle(claim, kept)
        self.counts.refused += self.index.num_refused - refused
        return inserted

    def _begin(self, rows: Tensor, ids: Tensor) -> None:
        """Make rows (N,) those of new ids (N,): noise, and where they start."""
        starts = None if self.prior is None else self.prior.starts(ids, self)
        if starts is not None and starts.shape != (len(ids), self.config.width):
            raise ValueError(
                f"the prior gave {tuple(starts.shape)} numbers for new rows; wanted {(len(ids), self.config.width)}"
            )
        self.pages.begin(rows, ids, self.seed, self.config.init_std, self.clock.tick)
        if starts is not None:
            self.pages.vectors.put(rows, self.pages.gather(rows) + starts)

    def _make_room(self, missing: int) -> None:
        """Free so many rows, or as many as may go."""
        if missing <= 0 or self._eviction is None:
            return
        limits = self._time_to_live.first_kept if self.config.eviction == "ttl" else None
        if limits is not None and limits == self._spent:
            return
        rows = self._eviction.take(missing, self.clock.tick).to(self.device)
        if len(rows):
            try:
                self._erased(self.ids_of(rows))
            except BaseException:  # no memory: they are looked for again
                self._eviction = self._new_eviction()
                raise
            self.counts.evicted += len(rows)
        if limits is not None and len(rows) < missing:
            self._spent = limits

    def _erased(self, ids: Tensor) -> Tensor:
        if self.cold is not None:  # before ids go whose rows could not be wiped
            self.cold.file.check_open()
        rows = self.index.erase(ids)
        is_gone = rows >= 0
        if bool(is_gone.any()):
            self.times_freed += 1
            held = rows[is_gone]
            self.pages.free(held[held < self.pages.num_rows])
            self._deleted.note(self.clock.tick, ids[is_gone])
        return rows

    def _rows_given(self) -> int:
        return self.num_rows

    def _is_expired(self, rows: Tensor, ticks: Tensor) -> Tensor:
        """(M,) bool of rows (M,) and their ticks (M,)."""
        return self._time_to_live.are_over(self.ids_of(rows.to(self.device)).to(ticks.device), ticks)

    def _new_eviction(self) -> EvictionQueue | None:
        config = self.config
        if config.eviction == "none" or config.capacity is None:
            return None
        return EvictionQueue(
            self.pages,
            self._rows_given,
            config.capacity,
            by_count=config.eviction == "lfu",
            first_kept=self._time_to_live.last_first_kept if config.eviction == "ttl" else None,
            is_evictable=self._is_expired if config.eviction == "ttl" and config.feature_ttl_s else None,
        )

    def _renumber(self) -> None:
        """Make room for ticks, once in two billion steps."""
        self.times_renumbered += 1
        rows = self.live_rows()
        ticks = self.pages.ticks.gather(rows).squeeze(1).long().cpu()
        kept = torch.unique(torch.cat([ticks, torch.tensor(self._deleted.ticks, dtype=torch.int64)]))
        self.clock.renumber(kept)
        self.pages.ticks.put(rows, torch.searchsorted(kept, ticks).to(self.device)[:, None])
        self._deleted.renumber(kept)
        self._eviction, self._spent = self._new_eviction(), None

    @staticmethod
    def _times_in_call(found: Tensor, firsts: Tensor) -> Tensor:
        """(M,) how often each new id stands in the call."""
        places = -2 - found[found < 0]
        return torch.bincount(torch.searchsorted(firsts, places), minlength=len(firsts))


def _new_cold_rows(config: TableConfig, page_rows: int | None, device: torch.device) -> "ColdRows | None":
    if config.hot_rows is None or config.cold_file is None:
        return None
    from recsys.models.embedding_table.cold_rows import ColdRows  # its locks and maps are not there on Windows

    if device.type != "cpu":
        raise ValueError(f"a table with hot_rows={config.hot_rows} is on {device}; wanted cpu")
    is_counted = config.eviction == "lfu"
    return ColdRows(
        config.width, config.optimizer, config.hot_rows, config.cold_file, page_rows=page_rows, are_counted=is_counted
    )


def _new_pages(config: TableConfig, page_rows: int | None, device: torch.device) -> RowPages:
    is_counted = config.eviction == "lfu"
    pages = RowPages(config.width, config.optimizer, page_rows=page_rows, device=device, are_counted=is_counted)
    pages.grow(config.expected)
    return pages

"""Vectors by id that readers see at one version while the next is made.

A version is a list of pages; the next one has copies of the pages that a delta writes to, and shares the others. One
index, id -> row, serves all versions: it may know more ids than a version has, so that a row counts only where the
version's own page says that the id lives there.

A row whose id is gone keeps it, so that the id finds its row again if it comes back. The row is another id's only when
no version that can still be read has it: not the retained ones, nor one that a reader holds.
"""

import threading
import time
import weakref
from collections import deque

import torch
from torch import Tensor

from recsys.kernels.hash_table import HashTable
from recsys.kernels.row_pages.column import Column
from recsys.models.delta.delta import TableDelta

PAGE_ROWS = 256  # a delta of few ids copies a page for each of them
IDS_A_LOCK = 1024  # readers wait for so many ids to be entered, at most
BREATH_S = 1e-5  # between two such times, so that a reader gets its turn
IN_USE = -1


class TableVersion:
    """A table at one version; nothing in it changes. Any number of threads may read it.

    Args:
        table: that it is of.
        number: of the table's versions, in the order in which they were made.
        size: how many ids have a row.
        keys: (page, 2) int64: id, and 1 if it has the row.
        rows: (page, width) float32.
        added: (A,) int64 rows that had no id in the version before.
        unknown: (width,) float32 learned vector of ids without a row; None: zeros.
    """

    def __init__(
        self,
        table: "ServingTable",
        number: int,
        size: int,
        keys: Column,
        rows: Column,
        added: Tensor,
        unknown: Tensor | None,
    ) -> None:
        self.table, self.number, self.added, self.unknown = table, number, added, unknown
        self._size, self._keys, self._rows = size, keys, rows

    def __len__(self) -> int:
        """How many ids have a row."""
        return self._size

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self._rows.width

    @property
    def num_rows(self) -> int:
        """For how many rows there is memory."""
        return len(self._keys.pages) << self._keys.log_page

    def find(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of ids (N,) int64; -1 for one that has none at this version."""
        rows = self.table.rows_of(ids)
        rows = torch.where(rows < self.num_rows, rows, -1)
        keys = self._keys.gather(rows)  # (N, 2)
        return torch.where((keys[:, 0] == ids) & (keys[:, 1] == 1), rows, -1)

    def vectors(self, ids: Tensor) -> Tensor:
        """(N, width) float32 vectors of ids (N,) int64; the unknown vector for one that has none at this version."""
        return self.of_rows(self.find(ids))

    def of_rows(self, rows: Tensor) -> Tensor:
        """(N, width) float32 of rows (N,) int64 that `find` gave; the unknown vector for -1."""
        vectors = self._rows.gather(rows)
        return vectors if self.unknown is None else torch.where((rows < 0)[:, None], self.unknown, vectors)

    def ids(self) -> Tensor:
        """(M,) int64: all that have a row."""
        none = torch.empty(0, 2, dtype=torch.int64)
        keys = torch.cat([none, *self._keys.pages])
        return keys[keys[:, 1] == 1, 0]

    def pages(self) -> list[Tensor]:
        """All pages, for who lets them go one by one."""
        return [*self._keys.pages, *self._rows.pages]

    def page_addresses(self) -> set[int]:
        """Where its pages lie: what it has in common with other versions."""
        return {*self._keys.addresses.tolist(), *self._rows.addresses.tolist()}

    def is_live(self, rows: Tensor) -> Tensor:
        """(N,) bool: whether rows (N,) int64 are some id's at this version."""
        return self._keys.gather(torch.where(rows < self.num_rows, rows, -1))[:, 1] == 1

    def ids_of(self, rows: Tensor) -> Tensor:
        """(N,) int64 ids of rows (N,) int64 that have, or had, one."""
        return self._keys.gather(rows)[:, 0]

    def with_rows(
        self,
        number: int,
        rows: Tensor,
        ids: Tensor,
        vectors: Tensor,
        gone: Tensor,
        num_rows: int,
        unknown: Tensor | None,
    ) -> "TableVersion":
        """The next version, for the table alone."""
        keys, values = self._keys, self._rows
        log_page = keys.log_page
        num_pages = max(len(keys.pages), (num_rows + (1 << log_page) - 1) >> log_page)
        written = torch.unique(rows >> log_page)
        with_gone = torch.unique(torch.cat([rows, gone]) >> log_page)
        added = rows[~self.is_live(rows)]
        gone_ids = self.ids_of(gone)
        keys = keys.forked(with_gone.tolist(), num_pages)
        values = values.forked(written.tolist(), num_pages)
        keys.put(rows, torch.stack([ids, torch.ones_like(ids)], dim=1))
        keys.put(gone, torch.stack([gone_ids, torch.zeros_like(gone)], dim=1))
        values.put(rows, vectors)
        return TableVersion(self.table, number, len(self) + len(added) - len(gone), keys, values, added, unknown)


class ServingTable:
    """Makes versions, on one thread at a time.

    Args:
        width: numbers of a row.
        page_rows: rows of a page, a power of two.

    Raises:
        ValueError: `page_rows` is no power of two.
    """

    def __init__(self, width: int, page_rows: int = PAGE_ROWS) -> None:
        if page_rows < 1 or page_rows & (page_rows - 1):
            raise ValueError(f"page_rows={page_rows}; wanted a power of two")
        self.width = width
        self._log_page = page_rows.bit_length() - 1
        self._index, self._lock = HashTable(), threading.Lock()
        self._next_number = 0
        self._readable: list[weakref.ref[TableVersion]] = []
        self._freed: deque[tuple[int, Tensor, Tensor]] = deque()  # since which version, rows, the ids they had
        self._freed_at = torch.empty(0, dtype=torch.int64)  # of each row; entries of `_freed` that differ are void

    def empty(self) -> TableVersion:
        """A version without ids."""
        device, none = torch.device("cpu"), torch.empty(0, dtype=torch.int64)
        keys = Column(2, torch.int64, 0, self._log_page, device)
        rows = Column(self.width, torch.float32, 0, self._log_page, device)
        return self._known(TableVersion(self, self._number(), 0, keys, rows, none, None))

    def rows_of(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of ids (N,) int64 at some version; -1 for one that the index does not know."""
        with self._lock:
            return self._index.find(ids)

    def applied(self, before: TableVersion, delta: TableDelta, *, is_base: bool) -> TableVersion:
        """The version after `before`, which is the last that was made or rolled back to.

        Args:
            before: a version of this table.
            delta: what changed; its ids stand once each.
            is_base: what is not in it goes.
        """
        ids, gone = delta.ids, before.find(delta.deleted)
        if is_base:
            all_ids = before.ids()
            gone = before.find(all_ids[~torch.isin(all_ids, ids)])
        gone = gone[gone >= 0]
        rows = self._entered(ids)
        number = self._number()
        unknown = before.unknown if delta.unknown is None and not is_base else delta.unknown
        after = before.with_rows(number, rows, ids, delta.vectors, gone, self._index.num_rows, unknown)
        self._free(number, gone, before.ids_of(gone))
        return self._known(after)

    def rolled_back(self, to: TableVersion, undone: list[TableVersion]) -> None:
        """Let the next version come after `to`, where `undone` were made after it, in their order."""
        parts = [(version.added, version.ids_of(version.added)) for version in undone]
        while self._freed and self._freed[-1][0] > to.number:
            number, rows, ids = self._freed.pop()
            is_valid = self._freed_at[rows] == number
            parts.append((rows[is_valid], ids[is_valid]))
        if not parts:
            return
        rows, ids = (torch.cat(side) for side in zip(*parts, strict=True))
        rows, inverse = torch.unique(rows, return_inverse=True)
        # No row had two ids meanwhile: `to` could be read, so that none was given to another.
        ids = torch.empty_like(rows).scatter_(0, inverse, ids)
        is_dead = ~to.is_live(rows)
        self._free(self._number(), rows[is_dead], ids[is_dead])

    def _entered(self, ids: Tensor) -> Tensor:
        """(M,) rows of ids (M,), new ones in the index."""
        rows = self._index.find(ids)
        self._freed_at[rows[rows >= 0]] = IN_USE
        new = (rows < 0).nonzero().squeeze(1)
        self._reclaim(len(new))
        for places in torch.split(new, IDS_A_LOCK):
            with self._lock:
                rows[places] = self._index.find_or_insert(ids[places]).rows
            time.sleep(BREATH_S)
        if self._index.num_rows > len(self._freed_at):
            grown = self._freed_at.new_full((self._index.num_rows * 5 // 4,), IN_USE)
            grown[: len(self._freed_at)] = self._freed_at
            self._freed_at = grown
        return rows

    def _reclaim(self, count: int) -> None:
        """Give at most so many rows back to the index that no version has which can be read."""
        oldest = min((version.number for ref in self._readable if (version := ref()) is not None), default=0)
        while count > 0 and self._freed and self._freed[0][0] <= oldest:
            number, rows, ids = self._freed.popleft()
            is_valid = self._freed_at[rows] == number
            rows, ids = rows[is_valid], ids[is_valid]
            if len(rows) > count:
                self._freed.appendleft((number, rows[count:], ids[count:]))
                rows, ids = rows[:count], ids[:count]
            self._freed_at[rows] = IN_USE
            count -= len(rows)
            for part in torch.split(ids, IDS_A_LOCK):
                with self._lock:
                    self._index.erase(part)
                time.sleep(BREATH_S)

    def _free(self, number: int, rows: Tensor, ids: Tensor) -> None:
        if len(rows):
            self._freed_at[rows] = number
            self._freed.append((number, rows, ids))

    def _known(self, version: TableVersion) -> TableVersion:
        self._readable = [ref for ref in self._readable if ref() is not None]
        self._readable.append(weakref.ref(version))
        return version

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

"""A hash table of 64-bit ids: each id has a row of its own, and no id is lost or moved while others come and go.

    find             rows of ids, -1 for unknown ones; nothing changes
    find_or_insert   rows of ids; a new one gets the row that was freed last, or else the lowest that was never given
    claim, settle    the same in two steps: who comes between them says which of the new ids get rows, and makes room
    erase            ids are forgotten, their rows freed
    export, import   all ids and rows

An id may stand in a call any number of times. The table is a function of the stream of calls alone: on any number of
threads, and on every path, the same stream gives the same rows. Any number of threads may look up at a time, but none
while one changes the table.

Paper: Liu et al. 2022, arXiv:2209.07663 (collisionless tables; there cuckoo hashing, and growth doubles the table at
once). Here a bucket is a cache line with a count of the ids that went past it, and growth moves a few hundred ids.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.hash_table.index import Index, new_index
from recsys.kernels.hash_table.sorted_index import first_places

MAX_ROWS = 2**31 - 2
IMPORTED = 1 << 18  # ids at a time: what a call needs beside the table is as large as the call


@dataclass(frozen=True)
class Inserted:
    """What `find_or_insert` gives.

    Attributes:
        rows: (N,) int64, the row of each id; -1 where a new one found no room.
        new: (M,) int64, ascending: the places in the call where a new id stands first that got a row.
    """

    rows: Tensor
    new: Tensor


@dataclass(frozen=True)
class Claim:
    """A call's ids, before its new ones have rows.

    Attributes:
        ids: (N,) int64.
        found: (N,) int64, the row of each id that is known; below 0 for a new one. `settle` completes it.
        firsts: (M,) int64, ascending: the places in the call where a new id stands first.
    """

    ids: Tensor
    found: Tensor
    firsts: Tensor


class HashTable:
    """Rows by 64-bit id.

    Args:
        max_rows: most ids at a time; new ones beyond it are refused, and counted in `num_refused`.
        expected: so many ids need no growth.
        device: of the ids and the rows.

    Raises:
        ValueError: `max_rows` is no number of rows, or `expected` is below 0.
    """

    def __init__(self, *, max_rows: int | None = None, expected: int = 0, device: torch.device | str = "cpu") -> None:
        if max_rows is not None and not 0 < max_rows <= MAX_ROWS:
            raise ValueError(f"max_rows={max_rows}; wanted 1 to {MAX_ROWS}")
        if expected < 0:
            raise ValueError(f"expected={expected}; wanted at least 0")
        self.max_rows = MAX_ROWS if max_rows is None else max_rows
        self.num_refused = 0
        self.device = torch.device(device)
        self._index: Index = new_index(expected, self.device)
        self._free = _Stack(torch.empty(0, dtype=torch.int64, device=self.device))
        self._next_row = 0
        self._open: Claim | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the index holds addresses."""
        kept = {"max_rows": self.max_rows, "num_refused": self.num_refused, "device": self.device}
        return kept | {"exported": self.export()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ids, rows, free = state["exported"]
        self.__init__(max_rows=state["max_rows"], expected=len(ids), device=state["device"])  # type: ignore[misc]  # of this very class
        self.num_refused = state["num_refused"]
        self.import_(ids, rows, free)

    def __len__(self) -> int:
        """How many ids there are."""
        return self._next_row - len(self._free)

    @property
    def num_rows(self) -> int:
        """One more than the highest row that was ever given."""
        return self._next_row

    @property
    def free_rows(self) -> Tensor:
        """(F,) int64 rows that were freed, a copy; the next to be given last."""
        return self._free.values.clone()

    @property
    def room(self) -> int:
        """How many more ids there may be."""
        return self.max_rows - len(self)

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        return self._index.num_bytes

    def gauges(self) -> dict[str, float]:
        """Of the index: `load` of its slots, `mean_probe` and `max_probe` steps to an id; those that it knows of."""
        return self._index.gauges()

    def find(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of `ids` (N,) int64, -1 for unknown ones."""
        self._abandon()
        return self._index.find(self._checked(ids))

    def find_or_insert(self, ids: Tensor) -> Inserted:
        """Rows of `ids` (N,) int64; an unknown one gets a row, if there is room."""
        self._abandon()
        at_once = self._index.insert(self._checked(ids), self._free.values, self._next_row, self.room)
        if at_once is None:
            return self.settle(self.claim(ids))
        rows, new, refused = at_once
        self.num_refused += refused
        self._take(len(new))
        return Inserted(rows, new)

    def claim(self, ids: Tensor) -> Claim:
        """Look for `ids` (N,) int64; `settle` is to give the new ones their rows, before anything but `erase`."""
        self._abandon()
        given = self._checked(ids)
        self._open = Claim(given, *self._index.claim(given))
        return self._open

    def settle(self, claim: Claim, kept: Tensor | None = None) -> Inserted:
        """Give the new ids of a claim their rows, those that stand first before the others, as long as there is room.

        Args:
            claim: the last one.
            kept: (M,) bool, the new ids that are wanted; the others stay unknown, and are not counted as refused.

        Raises:
            ValueError: another call came between, or `kept` does not fit.
        """
        if claim is not self._open:
            raise ValueError("the claim is not open: it was settled, or another call came between")
        firsts = claim.firsts
        if kept is not None and (kept.dtype != torch.bool or tuple(kept.shape) != (len(firsts),)):
            raise ValueError(f"kept is {kept.dtype} of the shape {tuple(kept.shape)}; wanted bool ({len(firsts)},)")
        self._open = None
        if len(firsts) == 0:
            return Inserted(claim.found, firsts)
        wanted = firsts if kept is None else firsts[kept]
        fitting, lost = wanted[: self.room], wanted[self.room :]
        if len(lost):
            self.num_refused += int(torch.isin(claim.found, -2 - lost).sum())
        given = self._next_rows(len(fitting))
        rows = given
        if len(fitting) < len(firsts):
            rows = torch.full_like(firsts, -1)
            rows[torch.searchsorted(firsts, fitting)] = given
        self._index.settle(claim.ids, claim.found, firsts, rows)
        self._take(len(fitting))
        return Inserted(claim.found, fitting)

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows that `ids` (N,) int64 had, and that are free from here on; -1 for unknown ids.

        Where an id stands again in the call, it is unknown.
        """
        rows = self._index.erase(self._checked(ids))
        self._free.push(rows[rows >= 0])
        return rows

    def withdraw(self, ids: Tensor, num_rows: int) -> Tensor:
        """(N,) int64 rows of the last call's new ids (N,): it never was; `num_rows` was the table's before it."""
        rows = self._index.erase(self._checked(ids))
        self._free.push(rows[rows < num_rows].flip(0))
        self._next_row = num_rows
        return rows

    def export(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) ids and their (M,) rows, in the order of the rows; and (F,) free rows, the next to be given last."""
        self._abandon()
        return *self._index.export(), self.free_rows

    def import_(self, ids: Tensor, rows: Tensor, free: Tensor) -> None:
        """Take what another table's `export` gave, in place of all that is here.

        Raises:
            ValueError: an id or a row stands there twice, the rows are not 0, 1, 2, … once each, or there are more ids
                than `max_rows`.
        """
        given = self._checked(ids)
        if len(rows) != len(given):
            raise ValueError(f"ids has {len(given)} elements, rows has {len(rows)}; they must be equal")
        if len(given) > self.max_rows:
            raise ValueError(f"there are {len(given)} ids; wanted at most max_rows={self.max_rows}")
        all_rows = torch.cat([rows, free]).to(self.device)
        total = len(all_rows)
        if total and (all_rows.min() < 0 or all_rows.max() >= total):
            raise ValueError(
                f"rows lie in [{int(all_rows.min())}, {int(all_rows.max())}]; wanted 0 to {total - 1}, once each"
            )
        times = torch.bincount(all_rows, minlength=total)
        if total and times.min() == 0:
            raise ValueError(f"row {int((times == 0).nonzero()[0])} is missing; wanted 0 to {total - 1}, once each")
        firsts = first_places(given)
        again = (firsts != torch.arange(len(given), device=self.device)).nonzero()
        if len(again):
            raise ValueError(f"ids[{int(again[0])}]={int(given[again[0]])} stands there twice")
        index = new_index(len(given), self.device)
        for part, its_rows in zip(
            torch.split(given, IMPORTED), torch.split(all_rows[: len(given)], IMPORTED), strict=True
        ):
            index.settle(part, *index.claim(part), its_rows)
        self._open = None
        self._index, self._free, self._next_row = index, _Stack(all_rows[len(given) :].clone()), total

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.dtype != torch.int64 or ids.dim() != 1:
            raise ValueError(f"ids is {ids.dtype} of the shape {tuple(ids.shape)}; wanted int64 (N,)")
        if ids.device.type != self.device.type:
            raise ValueError(f"ids is on {ids.device}; wanted {self.device}")
        if len(ids) > MAX_ROWS:
            raise ValueError(f"there are {len(ids)} ids in one call; wanted at most {MAX_ROWS}")
        return ids.contiguous()

    def _abandon(self) -> None:
        """Forget what a claim took that was never settled."""
        if self._open is not None:
            claim, self._open = self._open, None
            self._index.settle(claim.ids, claim.found, claim.firsts, torch.full_like(claim.firsts, -1))

    def _next_rows(self, count: int) -> Tensor:
        """Rows for so many ids."""
        freed = self._free.top(count)
        fresh = self._counted(self._next_row, self._next_row + count - len(freed))
        return torch.cat([freed, fresh]) if len(freed) else fresh

    def _take(self, count: int) -> None:
        """So many of the next rows are given."""
        freed = min(count, len(self._free))
        self._free.drop(freed)
        self._next_row += count - freed

    def _counted(self, start: int, stop: int) -> Tensor:
        if self.device.type == "cpu":  # torch would wake threads for it, which spin for milliseconds afterwards
            return torch.from_numpy(np.arange(start, stop))
        return torch.arange(start, stop, device=self.device)


class _Stack:
    """Rows that are free."""

    def __init__(self, values: Tensor) -> None:
        self._buffer, self._size = values, len(values)

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> Tensor:
        return self._buffer[: self._size]

    def push(self, values: Tensor) -> None:
        size = self._size + len(values)
        if size > len(self._buffer):
            grown = self._buffer.new_empty(2 * size)
            grown[: self._size] = self.values
            self._buffer = grown
        self._buffer[self._size : size] = values
        self._size = size

    def top(self, count: int) -> Tensor:
        """At most so many, the last first."""
        return self._buffer[max(0, self._size - count) : self._size].flip(0)

    def drop(self, count: int) -> None:
        """So many of the last."""
        self._size -= count

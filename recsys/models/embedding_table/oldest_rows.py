"""The first rows of a table in the order in which they go, looked for part by part.

What is found does not depend on how the search was cut, nor on when its parts ran: a touch only ever moves a row to a
later place, so a row that was left out stays behind those that are kept, and one that is kept and was touched since is
known by its tick.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_scan import Place, lowest, scan_rows
from recsys.kernels.row_scan.op import BEGIN, COUNT_SHIFT, MOST_KEY

TICK = (1 << COUNT_SHIFT) - 1  # of a key


class OldestRows:
    """A search for the first rows by tick, or by count and tick; of the same ones the lower row goes first.

    Args:
        pages: of the table.
        num_rows: of which so many are looked at.
        count: rows to find, at least 1.
        before: of ticks, the first of a row that may not go.
        after: no row up to this place is looked for.
        by_count: the fewest steps first.
        is_evictable: (M,) bool of rows (M,) int64 and their ticks (M,); None: all are. The search has one part then.
    """

    def __init__(
        self,
        pages: RowPages,
        num_rows: int,
        count: int,
        before: int,
        *,
        after: Place = BEGIN,
        by_count: bool = False,
        is_evictable: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.num_rows, self._pages, self._count = num_rows, pages, count
        self._before, self._after, self._by_count, self._is_evictable = before, after, by_count, is_evictable
        self._at, self._below = 0, MOST_KEY
        self._rows: list[Tensor] = []
        self._keys: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Memory of what was found so far."""
        return sum(part.nbytes for part in (*self._rows, *self._keys))

    @property
    def num_seen(self) -> int:
        """How many rows were looked at."""
        return self._at

    def go_on(self, stop: int) -> None:
        """Look at the rows up to `stop`; at most twice as many are kept as are to be found."""
        stop = min(stop, self.num_rows)
        while self._at < stop:
            room = 2 * self._count - sum(len(part) for part in self._rows)
            rows, keys, self._at = scan_rows(
                self._pages.ticks,
                self._pages.counts if self._by_count else None,
                self._at,
                stop,
                before=self._before,
                after=self._after,
                below=self._below,
                most=room,
            )
            if self._is_evictable is not None:
                is_kept = self._is_evictable(rows, keys & TICK)
                rows, keys = rows[is_kept], keys[is_kept]
            self._rows.append(rows)
            self._keys.append(keys)
            if len(rows) >= room:
                self._drop_the_last()

    def found(self) -> tuple[Tensor, Tensor]:
        """(<= count,) int64 rows in their order, and their ticks, after all rows are looked at; on the CPU."""
        self.go_on(self.num_rows)
        self._drop_the_last()
        if not self._rows:
            none = torch.empty(0, dtype=torch.int64)
            return none, none
        keys, order = self._keys[0].cpu().sort(stable=True)
        return self._rows[0].cpu()[order], keys & TICK

    def _drop_the_last(self) -> None:
        """Keep as many as are to be found; rows that are looked at later stand behind those of the same key."""
        if not self._rows:
            return
        rows, keys = lowest(torch.cat(self._rows), torch.cat(self._keys), self._count)
        self._rows, self._keys = [rows], [keys]
        if len(rows) == self._count:
            self._below = int(keys.max())

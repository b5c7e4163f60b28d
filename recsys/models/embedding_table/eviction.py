"""Which rows go when a table is full.

    lru   the one that was touched longest ago
    lfu   the one that had the fewest steps, of these the one touched longest ago
    ttl   of those past their time to live, the one touched longest ago

All rows are looked at once for every 1/64 of the capacity that is evicted: the first of them in that order are kept in
a queue, and one that was touched since is passed over. For lru and ttl that is exact, as a touch only ever moves a row
to the end; for lfu a row that comes later with fewer steps than those of the queue waits for the next look.
Rows that were touched in the running step stay, since their gradients are to come.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_pages.pages import FREE

PARTS = 64


class EvictionQueue:
    """Rows in the order in which they go.

    Args:
        pages: of the table.
        num_rows: how many of their rows the table ever gave.
        capacity: of the table.
        by_count: lfu, else lru.
        is_evictable: (M,) bool of rows (M,) int64 and their ticks (M,); None: all are.
        parts: of the capacity; so many rows a look finds.
    """

    def __init__(
        self,
        pages: RowPages,
        num_rows: Callable[[], int],
        capacity: int,
        *,
        by_count: bool = False,
        is_evictable: Callable[[Tensor, Tensor], Tensor] | None = None,
        parts: int = PARTS,
    ) -> None:
        self._pages, self._num_rows, self._by_count = pages, num_rows, by_count
        self._size = max(1, capacity // parts)
        self._is_evictable = is_evictable
        self._rows = self._ticks = torch.empty(0, dtype=torch.int64)

    def take(self, count: int, tick: int) -> Tensor:
        """(<= count,) int64 rows, the first in the order; none was touched at `tick`."""
        taken = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            if len(self._rows) == 0:
                self._look(max(self._size, count), tick, torch.cat(taken))
                if len(self._rows) == 0:
                    break
            is_left = self._pages.ticks.gather(self._rows).squeeze(1).cpu() == self._ticks
            self._rows, self._ticks = self._rows[is_left], self._ticks[is_left]
            taken.append(self._rows[:count])
            self._rows, self._ticks = self._rows[count:], self._ticks[count:]
            count -= len(taken[-1])
        return torch.cat(taken)

    @property
    def num_bytes(self) -> int:
        """Memory of the queue."""
        return self._rows.nbytes + self._ticks.nbytes

    def state(self) -> dict[str, Tensor]:
        """The queue."""
        return {"rows": self._rows.clone(), "ticks": self._ticks.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._rows, self._ticks = state["rows"], state["ticks"]

    def _look(self, count: int, tick: int, taken: Tensor) -> None:
        """Fill the queue, without rows (T,) that were taken and are not freed yet."""
        pages, size = self._pages, self._num_rows()
        ticks = pages.all_of(pages.ticks, size).squeeze(1).long().cpu()
        ticks[taken] = FREE
        rows = ((ticks >= 0) & (ticks < tick)).nonzero().squeeze(1)
        ticks = ticks[rows]
        if self._is_evictable is not None:
            kept = self._is_evictable(rows, ticks)
            rows, ticks = rows[kept], ticks[kept]
        if self._by_count:
            assert pages.counts is not None
            counts = pages.all_of(pages.counts, size).squeeze(1).long().cpu()[rows]
            if len(rows) > count:  # all that share the highest count that is needed stay to be ordered
                kept = counts <= counts.kthvalue(count).values
                rows, ticks, counts = rows[kept], ticks[kept], counts[kept]
            order = (counts << 31 | ticks).sort(stable=True).indices[:count]
        else:
            if len(rows) > count:
                kept = ticks <= ticks.kthvalue(count).values
                rows, ticks = rows[kept], ticks[kept]
            order = ticks.sort(stable=True).indices[:count]
        self._rows, self._ticks = rows[order], ticks[order]

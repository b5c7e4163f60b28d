"""Which rows go when a table is full.

    lru   the one that was touched longest ago
    lfu   the one that had the fewest steps, of these the one touched longest ago
    ttl   of those past their time to live, the one touched longest ago

The first rows in that order, 1/64 of the capacity, are kept in a queue; one that was touched since is passed over. For
lru, and for ttl with one time to live, that is exact, as a touch only ever moves a row to the end: whenever the rows
are looked at, and in however many parts, the same go. So there the rows that follow the queue's are looked for while it
empties, a part in each call, and neither queue nor search is in a state. For lfu a row that comes later with fewer
steps than those of the queue waits for the next look, and so does for ttl one whose feature has a longer time to live:
there all rows are looked at once the queue is empty, and the state holds the queue.
Rows that were touched in the running step stay, since their gradients are to come.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_scan import Place
from recsys.models.embedding_table.oldest_rows import OldestRows
from recsys.models.embedding_table.state_checks import tensor_of

PARTS = 64
LEAST_SEEN = 1 << 12  # rows that are looked at in one go, so that few calls do
LEAST_TAKEN = 256  # of the queue in one go


class EvictionQueue:
    """Rows in the order in which they go.

    Args:
        pages: of the table.
        num_rows: how many of their rows the table ever gave.
        capacity: of the table.
        by_count: lfu, else lru.
        first_kept: ttl: the tick from which on no row may go; None: the running one.
        is_evictable: (M,) bool of rows (M,) int64 and their ticks (M,), where `first_kept` does not say all; None: it
            does.
        parts: of the capacity; so many rows a look finds.
    """

    def __init__(
        self,
        pages: RowPages,
        num_rows: Callable[[], int],
        capacity: int,
        *,
        by_count: bool = False,
        first_kept: Callable[[], int] | None = None,
        is_evictable: Callable[[Tensor, Tensor], Tensor] | None = None,
        parts: int = PARTS,
    ) -> None:
        self._pages, self._num_rows, self._by_count = pages, num_rows, by_count
        self._size = max(1, capacity // parts)
        self._first_kept, self._is_evictable = first_kept, is_evictable
        self._is_exact = not by_count and is_evictable is None
        self._rows = self._ticks = torch.empty(0, dtype=torch.int64)
        self._length = 0  # when it was filled
        self._end = Place(0, 0)  # of the rows it was filled with
        self._next: OldestRows | None = None  # those that follow

    def take(self, count: int, tick: int) -> Tensor:
        """(<= count,) int64 rows, the first in the order; none was touched at `tick`."""
        wanted = count
        taken = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            if len(self._rows) == 0 and not self._fill(max(self._size, count), tick, torch.cat(taken)):
                break
            some = max(count, LEAST_TAKEN)
            rows, ticks = self._rows[:some], self._ticks[:some]
            places = (self._pages.ticks.gather(rows.to(self._pages.device)).squeeze(1).cpu() == ticks).nonzero()
            places = places.squeeze(1)[:count]
            end = int(places[-1]) + 1 if len(places) == count else len(rows)
            taken.append(rows[places])
            self._rows, self._ticks = self._rows[end:], self._ticks[end:]
            count -= len(places)
        if self._is_exact:
            self._look_ahead(wanted, tick)
        return torch.cat(taken)

    @property
    def num_bytes(self) -> int:
        """Memory of the queue, and of what follows it."""
        return self._rows.nbytes + self._ticks.nbytes + (0 if self._next is None else self._next.num_bytes)

    def state(self) -> dict[str, Tensor]:
        """The queue, where another look would not find the same rows."""
        if self._is_exact:
            return {"rows": torch.empty(0, dtype=torch.int64), "ticks": torch.empty(0, dtype=torch.int64)}
        return {"rows": self._rows.clone(), "ticks": self._ticks.clone()}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: it is no queue.
        """
        rows = tensor_of(state, "rows")
        tensor_of(state, "ticks", len(rows))
        if len(torch.unique(rows)) < len(rows):
            raise ValueError("rows holds a row twice; wanted each once")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        if not self._is_exact:
            self._rows, self._ticks = state["rows"].clone(), state["ticks"].clone()

    def _fill(self, count: int, tick: int, taken: Tensor) -> bool:
        """Whether there are rows, beside those (T,) that were taken and are not freed yet."""
        rows = ticks = torch.empty(0, dtype=torch.int64)
        if self._next is not None:
            rows, ticks = self._next.found()
            self._next = None
        if len(rows) == 0:
            rows, ticks = self._search(count + len(taken), tick).found()
            if len(taken):
                is_left = ~torch.isin(rows, taken)
                rows, ticks = rows[is_left][:count], ticks[is_left][:count]
        self._rows, self._ticks, self._length = rows, ticks, len(rows)
        if len(rows):
            self._end = Place(int(ticks[-1]), int(rows[-1]))
        return len(rows) > 0

    def _look_ahead(self, count: int, tick: int) -> None:
        """Look for the rows that follow the queue's, as far as it is empty."""
        if self._next is None:
            if len(self._rows) == 0 or self._length < self._size:  # none, or it held all that may go
                return
            self._next = self._search(max(self._size, count), tick, after=self._end)
        stop = self._next.num_rows * (self._length - len(self._rows)) // self._length
        if stop - self._next.num_seen >= LEAST_SEEN or len(self._rows) == 0:
            self._next.go_on(stop)

    def _search(self, count: int, tick: int, **bounds: Place) -> OldestRows:
        return OldestRows(
            self._pages,
            self._num_rows(),
            count,
            tick if self._first_kept is None else min(tick, self._first_kept()),
            by_count=self._by_count,
            is_evictable=self._is_evictable,
            **bounds,
        )

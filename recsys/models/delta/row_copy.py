"""Rows of a table as they stood at one moment, copied while the table trains on.

Between steps so many rows are copied as the caller has time for; rows that a step is about to write are copied before.
So the copy is of one moment, and no step waits for more than its own rows, nor writes others to a file.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from recsys.errors import DeltaError
from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_pages.column import Column
from recsys.models.delta.row_room import MemoryRoom, RowRoom, room_bytes
from recsys.models.delta.rows import Rows
from recsys.models.embedding_table.cold_rows import ColdRows

COLUMNS = ("vectors", "states", "counts")  # ids and ticks are read at once: they are few bytes, and others write them


class RowCopy:
    """Vectors, states and counts of rows of that moment.

    Args:
        pages: of the table.
        rows: (M,) int64, ascending.
        room: for the copies; None: in memory, once it is asked for.
        part_bytes: copied in one go.

    Raises:
        ValueError: another copy of these pages is under way.
    """

    def __init__(self, pages: RowPages, rows: Tensor, room: RowRoom | None = None, part_bytes: int = 1 << 22) -> None:
        if pages.before_write is not None:
            raise ValueError("another copy of this table is under way; finish it first")
        self._pages, self._rows, self._room = pages, rows, room
        self._columns = columns_of(pages)
        self._step = max(1, part_bytes // max(1, room_bytes(self._columns, 1)))
        self._is_waiting = torch.zeros(pages.num_rows, dtype=torch.bool, device=rows.device)
        self._is_waiting[rows] = True
        self._at, self._is_cancelled = 0, False

    def begin(self) -> None:
        """From here on rows are copied before they are written."""
        if not self.is_done:
            self._pages.before_write = self._before_write

    @property
    def is_done(self) -> bool:
        """Whether all rows are copied."""
        return self._at == len(self._rows)

    def copy(self, num_rows: int) -> int:
        """Copy at most so many rows; how many it were.

        Raises:
            DeltaError: the table was let go before.
        """
        self._check()
        start, stop = self._at, min(self._at + num_rows, len(self._rows))
        while self._at < stop:
            self._copy_part(min(self._at + self._step, stop))
        if self.is_done:
            self.cancel()
        return stop - start

    def finished(self) -> dict[str, Tensor | Rows]:
        """(M, …) by name, on the CPU or in a file; rows that are left are copied first. On any thread, if none are."""
        if not self.is_done:
            self.copy(len(self._rows))
        return self._held().columns()

    def in_place(self) -> dict[str, Rows]:
        """(M, …) by name, read from the table part by part: of this moment as long as none is written."""
        size = len(self._rows)
        cuts = [*range(0, size, self._step), size]  # a row in a cold file is read whole, for any column
        self._check()
        return {
            name: Rows(column.dtype, (size, column.width), partial(self._gathered, name), cuts)
            for name, column in self._columns.items()
        }

    def cancel(self) -> None:
        """Let the table go; rows that are left can be copied no more."""
        self._is_cancelled = True
        if self._pages.before_write == self._before_write:
            self._pages.before_write = None

    def _check(self) -> None:
        if self._is_cancelled and not self.is_done:
            raise DeltaError("this cut was abandoned before all its rows were copied; cut again")

    def _gathered(self, name: str, start: int, stop: int) -> Tensor:
        values = self._columns[name].gather(self._rows[start:stop]).cpu()
        _let_go(self._pages)
        return values

    def _copy_part(self, stop: int) -> None:
        """To row `stop` of those that are copied."""
        start = self._at
        rows, places = self._rows[start:stop], slice(start, stop)
        is_waiting = self._is_waiting[rows]
        if bool(is_waiting.all()):
            self._put(rows, places)
        elif bool(is_waiting.any()):
            self._put(rows[is_waiting], is_waiting.nonzero().squeeze(1) + start)
        _let_go(self._pages)
        self._at = stop

    def _put(self, rows: Tensor, places: Tensor | slice) -> None:
        self._held().put(places, {name: column.gather(rows) for name, column in self._columns.items()})
        self._is_waiting[rows] = False

    def _held(self) -> RowRoom:
        if self._room is None:
            self._room = MemoryRoom(self._columns, len(self._rows))
        return self._room

    def _before_write(self, rows: Tensor) -> None:
        rows = rows[(rows >= 0) & (rows < len(self._is_waiting))]
        rows = rows[self._is_waiting[rows]]
        if len(rows):
            rows = torch.unique(rows)
            self._put(rows, torch.searchsorted(self._rows, rows))


def columns_of(pages: RowPages) -> Mapping[str, Column]:
    """Those that are copied."""
    return {name: column for name, column in pages.columns.items() if name in COLUMNS}


def _let_go(pages: RowPages) -> None:
    if isinstance(pages, ColdRows):
        pages.let_go()

"""Rows of a table as they stood at one moment, copied while the table trains on.

Between steps so many rows are copied as the caller has time for; rows that a step is about to write are copied before.
So the copy is of one moment, and no step waits for more than its own rows.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.row_pages import RowPages
from recsys.kernels.row_pages.column import Column

COLUMNS = ("vectors", "states", "counts")  # ids and ticks are read at once: they are few bytes, and others write them


class RowCopy:
    """Vectors, states and counts of rows of that moment.

    Args:
        pages: of the table.
        rows: (M,) int64, ascending.

    Raises:
        ValueError: another copy of these pages is under way.
    """

    def __init__(self, pages: RowPages, rows: Tensor) -> None:
        if pages.before_write is not None:
            raise ValueError("another copy of this table is under way; finish it first")
        self._pages, self._rows = pages, rows
        self._columns = {name: column for name, column in pages.columns.items() if name in COLUMNS}
        self._copied = {name: _room(len(rows), column) for name, column in self._columns.items()}
        self._early: list[tuple[Tensor, dict[str, Tensor]]] = []  # places, and what was copied before it was written to
        self._is_waiting = torch.zeros(pages.num_rows, dtype=torch.bool, device=rows.device)
        self._is_waiting[rows] = True
        self._at = 0
        if len(rows):
            pages.before_write = self._before_write

    @property
    def is_done(self) -> bool:
        """Whether all rows are copied."""
        return self._at == len(self._rows)

    def copy(self, num_rows: int) -> int:
        """Copy at most so many rows; how many it were."""
        stop = min(self._at + num_rows, len(self._rows))
        rows = self._rows[self._at : stop]
        is_waiting = self._is_waiting[rows]
        places = slice(self._at, stop) if bool(is_waiting.all()) else self._at + is_waiting.nonzero().squeeze(1)
        for name, column in self._columns.items():
            self._copied[name][places] = column.gather(self._rows[places])
        self._is_waiting[rows] = False
        self._at = stop
        if self.is_done:
            self.cancel()
        return len(rows)

    def finished(self) -> dict[str, Tensor]:
        """(M, …) by name, on the CPU; rows that are left are copied first. On any thread, if none are."""
        if not self.is_done:
            self.copy(len(self._rows))
        for places, values in self._early:
            for name, copied in self._copied.items():
                copied[places] = values[name]
        self._early.clear()
        return {name: values.cpu() for name, values in self._copied.items()}

    def cancel(self) -> None:
        """Let the table go."""
        if self._pages.before_write == self._before_write:
            self._pages.before_write = None

    def _before_write(self, rows: Tensor) -> None:
        rows = rows[(rows >= 0) & (rows < len(self._is_waiting))]
        rows = rows[self._is_waiting[rows]]
        if len(rows):
            rows = torch.unique(rows)
            values = {name: column.gather(rows) for name, column in self._columns.items()}
            self._early.append((torch.searchsorted(self._rows, rows), values))
            self._is_waiting[rows] = False


def _room(num_rows: int, column: Column) -> Tensor:
    """(num_rows, width); numpy asks for large pages of memory, so that the first write to it does not wait for each."""
    if column.device.type != "cpu":
        return torch.empty(num_rows, column.width, dtype=column.dtype, device=column.device)
    return torch.from_numpy(np.empty((num_rows, column.width), dtype=torch.empty(0, dtype=column.dtype).numpy().dtype))

"""Rows in pages of equal size, each with the state of its optimizer, its id and when it was last touched.

    vectors   (page, width) float32
    states    (page, state_width) float32
    ticks     (page, 1) int32           -1: the row is free
    ids       (page, 1) int64
    counts    (page, 1) int32           of touches, where they are asked for

A table grows by pages: no row moves, and no step copies the table.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES
from recsys.kernels.row_pages import initial_rows, torch_rows
from recsys.kernels.row_pages.column import Column, is_by_triton, is_compiled
from recsys.kernels.row_pages.marks import FREE, MOST_COUNT
from recsys.kernels.row_pages.optimizers import RowOptimizer

MAX_TRITON_WIDTH = 1024  # a program holds whole rows; wider ones are updated by torch


class RowPages:
    """Rows of float32 and what belongs to them. A row below 0 is none: it reads as zeros, and is not updated.

    Args:
        width: numbers of a row.
        optimizer: of the updates; it says how wide the state is.
        page_rows: rows of a page, a power of two; by default the fewest that take 2 MB.
        device: of all of it.
        are_counted: whether touches are.

    Attributes:
        before_write: told the rows (N,) whose vectors, states or counts are about to change; row -1 is none.

    Raises:
        ValueError: `width` or `page_rows` is no such number.
    """

    def __init__(
        self,
        width: int,
        optimizer: RowOptimizer,
        *,
        page_rows: int | None = None,
        device: torch.device | str = "cpu",
        are_counted: bool = False,
    ) -> None:
        if width < 1:
            raise ValueError(f"width={width}; wanted at least 1")
        if page_rows is not None and (page_rows < 1 or page_rows & (page_rows - 1)):
            raise ValueError(f"page_rows={page_rows}; wanted a power of two")
        self.width, self.optimizer, self.device = width, optimizer, torch.device(device)
        self.state_width = optimizer.state_width(width)
        self.log_page = (default_page_rows(width) if page_rows is None else page_rows).bit_length() - 1

        def column(width: int, dtype: torch.dtype, fill: float) -> Column:
            return Column(width, dtype, fill, self.log_page, self.device)

        self.vectors = column(width, torch.float32, 0.0)
        self.states = column(self.state_width, torch.float32, optimizer.initial_state)
        self.ticks = column(1, torch.int32, FREE)
        self.ids = column(1, torch.int64, 0)
        self.counts = column(1, torch.int32, 0) if are_counted else None
        self.before_write: Callable[[Tensor], None] | None = None

    @property
    def columns(self) -> dict[str, Column]:
        """All columns by name."""
        counts = {} if self.counts is None else {"counts": self.counts}
        return {"vectors": self.vectors, "states": self.states, "ticks": self.ticks, "ids": self.ids} | counts

    @property
    def page_rows(self) -> int:
        """Rows of a page."""
        return 1 << self.log_page

    @property
    def num_rows(self) -> int:
        """For how many rows there is memory."""
        return min(len(column.pages) for column in self.columns.values()) << self.log_page

    @property
    def num_bytes(self) -> int:
        """Memory of the pages."""
        return sum(column.num_bytes for column in self.columns.values())

    def grow(self, num_rows: int) -> None:
        """Take pages until there are so many rows; new ones are zeros and free, their states those of a new row."""
        num_pages = -(-num_rows // self.page_rows)
        if num_pages << self.log_page > self.num_rows:
            for column in self.columns.values():  # where memory ends amid them, those that have pages keep them
                column.grow(num_pages)

    def clear(self) -> None:
        """Give all pages back.

        Raises:
            ValueError: somebody copies them.
        """
        if self.before_write is not None:
            raise ValueError("the rows are being copied for a delta; finish, or cancel, that copy first")
        for column in self.columns.values():
            column.pages.clear()
            column.read_addresses()

    def gather(self, rows: Tensor) -> Tensor:
        """(N, width) the rows (N,) int64; zeros where one is below 0."""
        return self.vectors.gather(rows)

    def update(self, rows: Tensor, gradients: Tensor, lr: float, tick: int) -> None:
        """One step of the optimizer, and the tick, for every row that is neither below 0 nor free.

        Args:
            rows: (N,) int64, any number of times each; its gradients are summed in the order of the call.
            gradients: (N, width) float32.
            lr: learning rate.
            tick: when.

        Raises:
            ValueError: rows and gradients do not fit each other, or the pages.
        """
        gradients = self._checked(rows, gradients)
        self._tell(rows)
        if is_by_triton(self.device) and self.width <= MAX_TRITON_WIDTH and self.num_rows:
            from recsys.kernels.row_pages import triton_path

            rows = torch.where(self.ticks.gather(rows).squeeze(1) < 0, -1, rows)
            of_rows = self.vectors.words, self.states.words, self.ticks.words
            triton_path.update(rows, gradients, *of_rows, self.optimizer, lr, tick)
            self.count(rows)
        elif is_compiled(self.device) and not is_by_triton(self.device):
            from recsys.kernels.row_pages import numba_path

            numba_path.update(self, rows, gradients, lr, tick)
        else:
            torch_rows.update(self, rows, gradients, lr, tick)

    def begin(self, rows: Tensor, ids: Tensor, seed: int, scale: float, tick: int) -> None:
        """Make rows (N,) int64, each once, those of new ids (N,) int64; the vectors are drawn by `initial_rows`."""
        self._tell(rows)
        if is_compiled(self.device):
            from recsys.kernels.row_pages import numba_path

            numba_path.put_initial(rows, ids, self.vectors, seed, scale)
        else:
            self.vectors.put(rows, initial_rows.drawn(ids, self.width, seed, scale))
        self.states.put_all(rows, self.states.fill)
        self.ids.put(rows, ids[:, None])
        self.ticks.put_all(rows, tick)
        if self.counts is not None:
            self.counts.put_all(rows, 0)

    def free(self, rows: Tensor) -> None:
        """Make rows (N,) int64 those of no id: nothing of what they held stays."""
        self._tell(rows)
        for column in self.columns.values():
            column.put_all(rows, column.fill)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, width) vectors, (N, state_width) states and (N,) ticks of rows (N,) int64, none below 0."""
        return self.vectors.gather(rows), self.states.gather(rows), self.ticks.gather(rows).squeeze(1)

    def write(self, rows: Tensor, vectors: Tensor, states: Tensor | None, ticks: Tensor | int) -> None:
        """Put numbers in rows (N,) int64, each once and none below 0. Without states they are those of a new row."""
        self._tell(rows)
        self.vectors.put(rows, vectors)
        if states is None:
            self.states.put_all(rows, self.states.fill)
        else:
            self.states.put(rows, states)
        self.put_ticks(rows, ticks)

    def put_ticks(self, rows: Tensor, ticks: Tensor | int) -> None:
        """Say when rows (N,) int64 were touched last: (N,) ticks, or one for all."""
        if isinstance(ticks, int):
            self.ticks.put_all(rows, ticks)
        else:
            self.ticks.put(rows, ticks[:, None])

    def count(self, rows: Tensor) -> None:
        """Count one touch of every row of rows (N,) int64 that is not below 0, where touches are counted.

        A count of 2^31 - 1 stays: one that went on would be the lowest of all.
        """
        if self.counts is not None:
            touched = torch.unique(rows[rows >= 0])
            counts = self.counts.gather(touched)
            self.counts.put(touched, counts + (counts < MOST_COUNT).int())

    def restore(self, values: Mapping[str, Tensor], num_rows: int) -> None:
        """Take the first rows of columns, (num_rows, width) by name, in place of all here; `fill` brings others."""
        self.clear()
        self.grow(num_rows)
        self.fill(0, values)

    def fill(self, start: int, values: Mapping[str, Tensor]) -> None:
        """Take rows from `start` on of columns, (N, width) by name, while all of it is restored."""
        for name, given in values.items():
            self.columns[name].put(torch.arange(start, start + len(given), device=self.device), given.to(self.device))

    def all_of(self, column: Column, num_rows: int) -> Tensor:
        """(num_rows, width) of the first rows of a column, copied into one tensor."""
        if not column.pages:
            return torch.empty(0, column.width, dtype=column.dtype, device=self.device)
        whole, rest = divmod(num_rows, self.page_rows)
        parts = column.pages[:whole] + ([column.pages[whole][:rest]] if rest else [])
        return torch.cat(parts) if parts else column.pages[0][:0].clone()

    def is_finite(self) -> bool:
        """Whether no number of any vector is NaN or infinite."""
        return all(bool(torch.isfinite(page).all()) for page in self.vectors.pages)

    def _checked(self, rows: Tensor, gradients: Tensor) -> Tensor:
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise ValueError(f"rows is {rows.dtype} of the shape {tuple(rows.shape)}; wanted int64 (N,)")
        if tuple(gradients.shape) != (len(rows), self.width) or not gradients.is_floating_point():
            raise ValueError(
                f"gradients is {gradients.dtype} of the shape {tuple(gradients.shape)}; wanted numbers "
                f"{(len(rows), self.width)}"
            )
        return gradients.detach().float()

    def _tell(self, rows: Tensor) -> None:
        if self.before_write is not None:
            self.before_write(rows)


def default_page_rows(width: int) -> int:
    """The least power of two of rows whose vectors fill a large page of memory."""
    return 1 << (-(-LARGE_PAGE_BYTES // (4 * width)) - 1).bit_length()

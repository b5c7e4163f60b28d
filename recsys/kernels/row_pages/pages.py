"""Rows in pages of equal size, each with the state of its optimizer and when it was last touched.

    vectors   (page, width) float32
    states    (page, state_width) float32
    ticks     (page,) int32

A table grows by pages: no row moves, and no step copies the table.
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.cpu.available import has_numba
from recsys.kernels.row_pages import torch_rows
from recsys.kernels.row_pages.optimizers import RowOptimizer

PAGE_BYTES = 1 << 22  # of vectors: from here on numpy asks for large pages of memory


class RowPages:
    """Rows of float32, their states and ticks. A row below 0 is none: it reads as zeros, and is not updated.

    Args:
        width: numbers of a row.
        optimizer: of the updates; it says how wide the state is.
        page_rows: rows of a page, a power of two; by default as many as 4 MB hold.
        device: of all of it.
    """

    def __init__(
        self,
        width: int,
        optimizer: RowOptimizer,
        *,
        page_rows: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if width < 1:
            raise ValueError(f"width={width}; wanted at least 1")
        if page_rows is not None and (page_rows < 1 or page_rows & (page_rows - 1)):
            raise ValueError(f"page_rows={page_rows}; wanted a power of two")
        self.width, self.optimizer, self.device = width, optimizer, torch.device(device)
        self.state_width = optimizer.state_width(width)
        self.log_page = (max(1, PAGE_BYTES // (4 * width)) if page_rows is None else page_rows).bit_length() - 1
        self.vectors: list[Tensor] = []
        self.states: list[Tensor] = []
        self.ticks: list[Tensor] = []
        self._addresses = np.empty((3, 0), dtype=np.int64)

    @property
    def page_rows(self) -> int:
        """Rows of a page."""
        return 1 << self.log_page

    @property
    def num_rows(self) -> int:
        """For how many rows there is memory."""
        return len(self.vectors) << self.log_page

    @property
    def num_bytes(self) -> int:
        """Memory of the pages."""
        return sum(page.nbytes for kind in (self.vectors, self.states, self.ticks) for page in kind)

    def grow(self, num_rows: int) -> None:
        """Take pages until there are so many rows; new ones are zeros, their states those of a new row."""
        before = len(self.vectors)
        while self.num_rows < num_rows:
            self.vectors.append(self._zeros(self.page_rows, self.width))
            state = self._zeros(self.page_rows, self.state_width)
            self.states.append(state.fill_(self.optimizer.initial_state) if self.optimizer.initial_state else state)
            self.ticks.append(torch.zeros(self.page_rows, dtype=torch.int32, device=self.device))
        if len(self.vectors) > before:
            kinds = self.vectors, self.states, self.ticks
            self._addresses = np.array([[page.data_ptr() for page in kind] for kind in kinds], dtype=np.int64)

    def gather(self, rows: Tensor) -> Tensor:
        """(N, width) the rows (N,) int64; zeros where one is below 0."""
        if self._is_compiled:
            from recsys.kernels.row_pages import numba_path

            return numba_path.gather(rows, self._addresses, self.log_page, self.width)
        return torch_rows.gather(rows, self.vectors, self.log_page, self.width)

    def update(self, rows: Tensor, gradients: Tensor, lr: float, tick: int) -> None:
        """One step of the optimizer, and the tick, for every row that is not below 0.

        Args:
            rows: (N,) int64, any number of times each; its gradients are summed in the order of the call.
            gradients: (N, width) float32.
            lr: learning rate.
            tick: when.
        """
        if self._is_compiled:
            from recsys.kernels.row_pages import numba_path

            numba_path.update(rows, gradients, self._addresses, self.log_page, self.optimizer, lr, tick)
        else:
            torch_rows.update(self, rows, gradients, lr, tick)

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, width) vectors, (N, state_width) states and (N,) ticks of rows (N,) int64, none below 0."""
        log_page = self.log_page
        return (
            torch_rows.gather(rows, self.vectors, log_page, self.width),
            torch_rows.gather(rows, self.states, log_page, self.state_width),
            torch_rows.gather_flat(rows, self.ticks, log_page),
        )

    def write(self, rows: Tensor, vectors: Tensor, states: Tensor | None, ticks: Tensor | int) -> None:
        """Put numbers in rows (N,) int64, each once and none below 0. Without states they are those of a new row."""
        parts = torch_rows.by_page(rows, self.log_page)
        for page, places, slots in parts:
            self.vectors[page][slots] = vectors[places]
            self.states[page][slots] = self.optimizer.initial_state if states is None else states[places]
            self.ticks[page][slots] = ticks if isinstance(ticks, int) else ticks[places]

    @property
    def _is_compiled(self) -> bool:
        return self.device.type == "cpu" and has_numba()

    def _zeros(self, rows: int, width: int) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(np.zeros((rows, width), dtype=np.float32))
        return torch.zeros(rows, width, device=self.device)

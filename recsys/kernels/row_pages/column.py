"""One number, or a vector of them, for every row, in pages of equal size."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.backend import takes_triton
from recsys.kernels.cpu.available import has_numba
from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES, owed_memory
from recsys.kernels.row_pages import torch_rows

if TYPE_CHECKING:
    from recsys.kernels.row_pages.triton_path import Pages

FEW_PAGES = 16  # at once; a table that is made with more has their memory where they are first written


class Column:
    """Rows of `width` numbers in pages; a page never moves.

    Args:
        width: numbers of a row; 0 is none.
        dtype: float32, int32 or int64.
        fill: every number of a new row.
        log_page: a page has 2 ** log_page rows.
        device: of the pages.
    """

    def __init__(self, width: int, dtype: torch.dtype, fill: float, log_page: int, device: torch.device) -> None:
        self.width, self.dtype, self.fill, self.log_page, self.device = width, dtype, fill, log_page, device
        self.pages: list[Tensor] = []  # each (page_rows, width)
        self.addresses = np.empty(0, dtype=np.int64)  # of the pages
        self._words: Pages | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a copy's pages lie elsewhere."""
        return vars(self) | {"addresses": None, "_words": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.read_addresses()

    @property
    def num_bytes(self) -> int:
        """Memory of the pages."""
        return sum(page.nbytes for page in self.pages)

    def grow(self, num_pages: int) -> None:
        """Take pages until there are so many."""
        before = len(self.pages)
        try:
            while len(self.pages) < num_pages:
                self.pages.append(self._new_page(is_given=num_pages - before <= FEW_PAGES))
        finally:  # where memory ends, those that there are stay
            if len(self.pages) > before:
                self._words = None
                self.addresses = np.append(self.addresses, _addresses_of(self.pages[before:]))

    def read_addresses(self) -> None:
        """Look where the pages lie; needed after one of them was replaced."""
        self._words = None
        self.addresses = _addresses_of(self.pages)

    def forked(self, written: Iterable[int], num_pages: int) -> "Column":
        """Another column with the same pages, but for those that are to be `written`: it has copies of these.

        Args:
            written: numbers of pages.
            num_pages: of the other column, at least as many as here.
        """
        fork = Column(self.width, self.dtype, self.fill, self.log_page, self.device)
        fork.pages, fork.addresses = self.pages.copy(), self.addresses.copy()
        for number in written:
            if number < len(self.pages):
                fork.pages[number] = self.pages[number].clone()
                fork.addresses[number] = fork.pages[number].data_ptr()
        more = [self._new_page() for _ in range(num_pages - len(self.pages))]
        fork.pages += more
        fork.addresses = np.append(fork.addresses, _addresses_of(more))
        return fork

    def gather(self, rows: Tensor) -> Tensor:
        """(N, width) the rows (N,) int64; zeros where one is below 0."""
        if is_by_triton(self.device):
            from recsys.kernels.row_pages import triton_path

            words = triton_path.gather(rows, self.words) if self.pages else rows.new_empty(0, self.width)
            return words.view(self.dtype)
        if is_compiled(self.device):
            from recsys.kernels.row_pages import numba_path

            return numba_path.gather(rows, self)
        return torch_rows.gather(rows, self)

    def put(self, rows: Tensor, values: Tensor) -> None:
        """Write `values` (N, width) to rows (N,) int64. Of a row that stands there again, any one value stays.

        Raises:
            ValueError: the values do not fit.
        """
        if tuple(values.shape) != (len(rows), self.width):
            raise ValueError(f"values is of the shape {tuple(values.shape)}; wanted {(len(rows), self.width)}")
        if is_by_triton(self.device):
            from recsys.kernels.row_pages import triton_path

            if self.pages:
                triton_path.scatter(rows, self.words, values.to(self.dtype).contiguous().view(self.words.base.dtype))
        elif is_compiled(self.device):
            from recsys.kernels.row_pages import numba_path

            numba_path.put(rows, self, values)
        else:
            torch_rows.put(rows, self, values)

    def put_all(self, rows: Tensor, value: float) -> None:
        """Write one number all over rows (N,) int64."""
        self.put(rows, torch.tensor(value, dtype=self.dtype, device=self.device).expand(len(rows), self.width))

    @property
    def words(self) -> "Pages":
        """The pages for Triton, in numbers of 32 bits."""
        if self._words is None:
            from recsys.kernels.row_pages.triton_path import Pages

            is_wide = self.dtype == torch.int64
            pages = [page.view(torch.int32) for page in self.pages] if is_wide else self.pages
            self._words = Pages.of(pages, self.log_page, self.width * (1 + is_wide))
        return self._words

    def _new_page(self, is_given: bool = False) -> Tensor:
        """A page of new rows; `is_given`: with its memory, which threads that write first to it may take twice."""
        size = 1 << self.log_page, self.width
        if self.device.type != "cpu":
            return torch.full(size, self.fill, dtype=self.dtype, device=self.device)
        numbers = torch.empty(0, dtype=self.dtype).numpy().dtype
        page = torch.from_numpy(owed_memory(math.prod(size) * numbers.itemsize).view(numbers).reshape(size))
        if self.fill:
            page.fill_(self.fill)
        elif is_given and page.numel():
            page.view(-1)[:: LARGE_PAGE_BYTES // numbers.itemsize] = 0
        return page


def _addresses_of(pages: list[Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([page.data_ptr() for page in pages], dtype=np.int64)


def is_compiled(device: torch.device) -> bool:
    """Whether rows there are worked on by kernels that numba compiles."""
    return device.type == "cpu" and has_numba()


def is_by_triton(device: torch.device) -> bool:
    """Whether rows there are worked on by Triton's kernels."""
    return takes_triton("row_pages", torch.empty(0, device=device))

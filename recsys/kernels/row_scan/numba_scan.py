# mypy: allow-untyped-decorators
"""Rows within bounds of their last touch, by a kernel that numba compiles: it reads the pages where they lie."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from recsys.kernels.cpu.memory import load_i32

if TYPE_CHECKING:
    from recsys.kernels.row_pages.column import Column
    from recsys.kernels.row_scan.op import Place

Ids = np.ndarray[Any, np.dtype[np.int64]]

_options = {"nogil": True, "cache": True, "boundscheck": False}


def scan(
    ticks: "Column",
    counts: "Column | None",
    start: int,
    stop: int,
    before: int,
    after: "Place",
    below: int,
    most: int | None,
) -> tuple[Tensor, Tensor, int]:
    """As `scan_rows`; there are pages for all rows."""
    size = stop - start if most is None else min(stop - start, most)
    rows, keys = np.empty(size, np.int64), np.empty(size, np.int64)
    of_counts = np.empty(0, np.int64) if counts is None else counts.addresses
    found, end = collect(
        start, stop, ticks.addresses, of_counts, ticks.log_page, before, after.key, after.row, below, rows, keys
    )
    if found < size:  # so that what is kept is no longer than what was found
        rows, keys = rows[:found].copy(), keys[:found].copy()
    return torch.from_numpy(rows), torch.from_numpy(keys), int(end)


@njit(**_options)
def collect(
    start: int,
    stop: int,
    ticks: Ids,
    counts: Ids,
    log_page: int,
    before: int,
    after_key: int,
    after_row: int,
    below: int,
    rows: Ids,
    keys: Ids,
) -> Any:
    """How many rows are found, until the arrays are full or all are looked at; and the first that was not."""
    found = 0
    while start < stop:
        page = start >> log_page
        first = page << log_page
        for row in range(start, min(stop, first + (1 << log_page))):
            tick = np.int64(load_i32(ticks[page] + 4 * (row - first)))
            if tick < 0 or tick >= before:
                continue
            key = tick
            if counts.size > 0:
                key |= np.int64(load_i32(counts[page] + 4 * (row - first))) << 31
            if key >= below or key < after_key or (key == after_key and row <= after_row):
                continue
            if found == rows.size:
                return found, row
            rows[found], keys[found] = row, key
            found += 1
        start = min(stop, first + (1 << log_page))
    return found, stop

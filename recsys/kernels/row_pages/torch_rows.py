"""Rows in pages, by torch alone: a call goes page by page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from recsys.kernels.row_pages.column import Column
    from recsys.kernels.row_pages.pages import RowPages


def by_page(rows: Tensor, log_page: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each page that is met, the places of its rows in the call, and where they lie in the page."""
    pages, order = (rows >> log_page).sort(stable=True)
    numbers, counts = torch.unique_consecutive(pages, return_counts=True)
    start = 0
    for page, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        if page >= 0:
            places = order[start : start + count]
            yield page, places, rows[places] & ((1 << log_page) - 1)
        start += count


def gather(rows: Tensor, column: "Column") -> Tensor:
    """(N, width) the rows, zeros where one is below 0."""
    out = torch.zeros(len(rows), column.width, dtype=column.dtype, device=rows.device)
    for page, places, slots in by_page(rows, column.log_page):
        out[places] = column.pages[page][slots]
    return out


def put(rows: Tensor, column: "Column", values: Tensor) -> None:
    """Write `values` to the rows that are not below 0."""
    for page, places, slots in by_page(rows, column.log_page):
        column.pages[page][slots] = values[places].to(column.dtype)


def update(pages: "RowPages", rows: Tensor, gradients: Tensor, lr: float, tick: int) -> None:
    """One step of the optimizer for every row, by the sum of its gradients in the order of the call."""
    kept = (rows >= 0) & (pages.ticks.gather(rows).squeeze(1) >= 0)
    unique, inverse = torch.unique(rows[kept], return_inverse=True)
    sums = torch.zeros(len(unique), gradients.shape[1], device=rows.device).index_add_(0, inverse, gradients[kept])
    vectors, states, _ = pages.read(unique)
    pages.optimizer.step(vectors, states, sums, lr)
    pages.write(unique, vectors, states, tick)
    pages.count(unique)

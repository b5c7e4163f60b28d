"""Rows in pages, by the kernels of `numba_rows.py` on the threads of the hash table."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.cpu.threads import in_parts, num_parts, on_threads
from recsys.kernels.row_pages import initial_rows
from recsys.kernels.row_pages import numba_rows as kernels
from recsys.kernels.row_pages.optimizers import NAMES

if TYPE_CHECKING:
    from recsys.kernels.row_pages.column import Column
    from recsys.kernels.row_pages.pages import RowPages

Ids = np.ndarray[Any, np.dtype[np.int64]]

ROW_COST = 4  # of a row's update, in gradients that are summed
KINDS = {name: kind for kind, name in enumerate(NAMES)}


def gather(rows: Tensor, column: "Column") -> Tensor:
    """(N, width) the rows (N,) int64, zeros where one is below 0."""
    numbers, out = (
        _numbers(rows, len(column.pages) << column.log_page),
        torch.empty(len(rows), column.width, dtype=column.dtype),
    )
    words, addresses, log_page = out.numpy().view(np.int32), column.addresses, column.log_page
    in_parts(lambda start, stop: kernels.gather(numbers, start, stop, addresses, log_page, words), len(numbers))
    return out


def put(rows: Tensor, column: "Column", values: Tensor) -> None:
    """Write `values` (N, width) to the rows (N,) int64 that are not below 0."""
    numbers, words = (
        _numbers(rows, len(column.pages) << column.log_page),
        values.to(column.dtype).contiguous().numpy().view(np.int32),
    )
    addresses, log_page = column.addresses, column.log_page
    in_parts(lambda start, stop: kernels.put(numbers, start, stop, addresses, log_page, words), len(numbers))


def put_initial(rows: Tensor, ids: Tensor, vectors: "Column", seed: int, scale: float) -> None:
    """Write what `initial_rows` draws for ids (N,) to their rows (N,)."""
    numbers, keys = _numbers(rows, len(vectors.pages) << vectors.log_page), ids.contiguous().numpy()
    mixed_seed = np.int64(initial_rows.mixed_seed(seed))
    factor, addresses = np.float32(scale / initial_rows.SPREAD), vectors.addresses

    def work(start: int, stop: int) -> None:
        kernels.put_initial(numbers, keys, start, stop, addresses, vectors.log_page, vectors.width, mixed_seed, factor)

    in_parts(work, len(numbers))


def update(pages: "RowPages", rows: Tensor, gradients: Tensor, lr: float, tick: int) -> None:
    """One step of the optimizer for every row, by the sum of its gradients in the order of the call."""
    numbers, values = _numbers(rows, pages.num_rows), gradients.contiguous().numpy()
    order = kernels.ordered(numbers, pages.num_rows)
    starts = kernels.segments(numbers, order)
    optimizer = pages.optimizer
    constants = np.array([lr, optimizer.weight_decay, optimizer.eps, optimizer.beta1, optimizer.beta2])
    counts = np.empty(0, dtype=np.int64) if pages.counts is None else pages.counts.addresses
    parts = num_parts(len(order))
    # Each part has whole rows, and about as much to do: a row costs as much as some of its gradients.
    work_before = starts[:-1] + ROW_COST * np.arange(len(starts) - 1)
    total = len(order) + ROW_COST * (len(starts) - 1)
    cuts = np.append(np.searchsorted(work_before, [total * part // parts for part in range(parts)]), len(starts) - 1)

    def work(part: int) -> None:
        kernels.update(
            numbers,
            values,
            order,
            starts,
            cuts[part],
            cuts[part + 1],
            pages.vectors.addresses,
            pages.states.addresses,
            pages.ticks.addresses,
            counts,
            pages.log_page,
            pages.state_width,
            KINDS[optimizer.name],
            constants,
            tick,
        )

    on_threads(work, parts)


def _numbers(rows: Tensor, num_rows: int) -> Ids:
    """The rows for a kernel, which follows them blindly.

    Raises:
        ValueError: there is no such row.
    """
    if rows.dtype != torch.int64:
        raise ValueError(f"rows is {rows.dtype}; wanted int64")
    numbers: Ids = rows.contiguous().numpy()
    if numbers.size and int(numbers.max()) >= num_rows:
        raise ValueError(f"row {int(numbers.max())} is asked for; there is memory for {num_rows}")
    return numbers

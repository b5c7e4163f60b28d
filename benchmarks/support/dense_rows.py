# mypy: allow-untyped-decorators
"""Rows of one dense matrix, gathered and updated by numba: what a table without ids, pages and growth would cost."""

from typing import Any

import numpy as np
from numba import njit, prange

from recsys.kernels.row_pages.numba_rows import ordered, segments

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


@njit(parallel=True, cache=True, error_model="numpy")
def _gathered(matrix: Any, rows: Any) -> Any:
    out = np.empty((rows.size, matrix.shape[1]), np.float32)
    for n in prange(rows.size):
        for d in range(matrix.shape[1]):
            out[n, d] = matrix[rows[n], d]
    return out


@njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def _updated(matrix: Any, squares: Any, rows: Any, order: Any, starts: Any, gradients: Any, lr: Any, eps: Any) -> None:
    width = matrix.shape[1]
    for s in prange(starts.size - 1):
        row = rows[order[starts[s]]]
        total = np.zeros(width, np.float32)
        for n in range(starts[s], starts[s + 1]):
            for d in range(width):
                total[d] += gradients[order[n], d]
        mean = np.float32(0)
        for d in range(width):
            mean += total[d] * total[d]
        squares[row] += mean / width
        rate = lr / (np.sqrt(squares[row]) + eps)
        for d in range(width):
            matrix[row, d] -= rate * total[d]


class DenseRows:
    """A matrix and its row-wise Adagrad."""

    def __init__(self, num_rows: int, width: int) -> None:
        self._matrix = np.zeros((num_rows, width), dtype=np.float32)
        self._squares = np.zeros(num_rows, dtype=np.float32)

    def step(self, rows: Ids, gradients: Floats) -> Floats:
        """Gather rows (N,), then update them by gradients (N, width), those of a row summed."""
        out: Floats = _gathered(self._matrix, rows)
        order = ordered(rows, len(self._matrix))
        starts = segments(rows, order)
        _updated(self._matrix, self._squares, rows, order, starts, gradients, np.float32(0.05), np.float32(1e-8))
        return out

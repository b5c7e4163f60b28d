# mypy: allow-untyped-decorators
"""How many cache lines at random this machine reads in a second: what a table in memory can at best be asked for."""

from typing import Any

import numpy as np
from numba import njit

from recsys.kernels.cpu.memory import load_i64, prefetch
from recsys.kernels.cpu.threads import in_parts

LINE_BYTES = 64
WINDOW = 32


@njit(nogil=True, cache=True)
def _read(base: Any, lines: Any, start: Any, stop: Any, found: Any) -> None:
    for first in range(start, stop, WINDOW):
        size = min(WINDOW, stop - first)
        for j in range(size):
            prefetch(base + LINE_BYTES * lines[first + j])
        for j in range(size):
            found[first + j] = load_i64(base + LINE_BYTES * lines[first + j])


class RandomReads:
    """Memory of so many bytes, and lines of it to be read.

    Args:
        num_bytes: of the memory.
        count: lines that a call reads.
    """

    def __init__(self, num_bytes: int, count: int, seed: int = 0) -> None:
        self._memory = np.ones(num_bytes // 8, dtype=np.int64)
        self._lines = np.random.default_rng(seed).integers(0, num_bytes // LINE_BYTES - 1, count)
        self._found = np.empty(count, dtype=np.int64)

    def __call__(self) -> None:
        """Read each line's first eight bytes, on as many threads as torch uses."""
        base = -(-self._memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        in_parts(lambda start, stop: _read(base, self._lines, start, stop, self._found), len(self._lines))

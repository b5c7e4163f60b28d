"""Zeroed memory that the machine owes: it gives it where it is first written, in large pages where it has them."""

import mmap
from contextlib import suppress
from typing import Any

import numpy as np

LARGE_PAGE_BYTES = 1 << 21

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


def owed_memory(num_bytes: int) -> Bytes:
    """(num_bytes,) zeros; from 2 MB on they begin where a large page does.

    numpy.zeros, too, gives memory that was used before, all of which it clears first, and seldom whole large pages.

    Raises:
        MemoryError: the machine has none left to owe.
    """
    if num_bytes < LARGE_PAGE_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.zeros(num_bytes, dtype=np.uint8)
    try:
        memory: Any = mmap.mmap(-1, num_bytes + LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes:,} bytes of memory are wanted, and not to be had: {error.strerror}") from error
    whole = np.frombuffer(memory, dtype=np.uint8)
    before = -whole.ctypes.data % LARGE_PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            # Not of the rest: it would be as large as one more large page.
            memory.madvise(mmap.MADV_HUGEPAGE, before, num_bytes - num_bytes % LARGE_PAGE_BYTES)
    return whole[before : before + num_bytes]

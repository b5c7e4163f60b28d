"""A column of a delta's rows that need not lie in memory: it is read part by part."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MEMORY_BYTES = 1 << 26  # for rows that are on their way between a table, files and another file
SHARES = 16  # a part of them is one in so many: reading, checking and writing it takes copies


@dataclass(frozen=True, eq=False)
class Rows:
    """(M, …) of a file, of a table's pages, or of a chain of deltas.

    Attributes:
        dtype: of its numbers.
        shape: (M, …).
        read: the rows from one number to another.
        cuts: ascending from 0 to M: between one and the next lies what is read in one go.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[int, int], Tensor]
    cuts: Sequence[int]

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def parts(self) -> Iterator[Tensor]:
        """All rows in their order, a part in memory at a time."""
        for start, stop in pairwise(self.cuts):
            if stop > start:
                yield self.read(start, stop)

    def loaded(self) -> Tensor:
        """All rows in memory."""
        out, at = torch.empty(self.shape, dtype=self.dtype), 0
        for part in self.parts():
            out[at : at + len(part)] = part
            at += len(part)
        return out


def part_of(memory_bytes: int) -> int:
    """Bytes of rows that are brought in in one go, where they may take so many with all that is done to them."""
    return max(1, memory_bytes // SHARES)


def rows_by(part_bytes: int, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[int, int], Tensor]) -> Rows:
    """Rows of which a part is of so many bytes at most, or one row."""
    step = max(1, part_bytes // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return Rows(dtype, shape, read, [*range(0, shape[0], step), shape[0]])


def rows_of(tensor: Tensor) -> Rows:
    """Of a tensor (M, …) in memory."""
    return Rows(tensor.dtype, tuple(tensor.shape), lambda start, stop: tensor[start:stop], [0, len(tensor)])

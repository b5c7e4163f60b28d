"""What the hash table asks of an index of ids, and which one this machine has."""

from typing import Protocol

import torch
from torch import Tensor

from recsys.kernels.cpu.available import has_numba


class Index(Protocol):
    """Rows by id; which row a new id gets is the caller's. All tensors are int64, and on the index's device."""

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""

    def gauges(self) -> dict[str, float]:
        """Of `load`, `mean_probe` and `max_probe` those that it knows of."""

    def find(self, ids: Tensor) -> Tensor:
        """(N,) row of each id, -1 for one that is not there."""

    def claim(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row of each id, and the (M,) places where the ids stand first that were not there, ascending.

        The row of an id that was not there is -(j + 2), where j is its first place. What was claimed must be settled
        before the next claim; others may be erased before.
        """

    def settle(self, ids: Tensor, found: Tensor, firsts: Tensor, rows: Tensor) -> None:
        """Give the claimed ids ids[firsts] their rows, -1 for those to be forgotten, and write them to `found`."""

    def insert(self, ids: Tensor, free_rows: Tensor, next_row: int, room: int) -> tuple[Tensor, Tensor, int] | None:
        """(N,) rows, the (M,) places where ids stand first that got theirs, and how many ids were refused.

        None where claim and settlement are faster. The k-th new id gets the k-th last of the free rows, after these the
        rows from `next_row` on; from the room-th on they get -1.
        """

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) row that each id had, -1 for one that was not there, or that stands in the call before."""

    def export(self) -> tuple[Tensor, Tensor]:
        """All ids, and their rows, in the order of the rows."""


def new_index(expected: int, device: torch.device) -> Index:
    """An empty index, with room for so many ids."""
    if device.type == "cpu" and has_numba():
        from recsys.kernels.hash_table.numba_index import NumbaIndex

        return NumbaIndex(expected)
    from recsys.kernels.hash_table.sorted_index import SortedIndex

    return SortedIndex(device)

"""Rows by their list of negatives, cut into pieces of few enough rows for one program, without a look at the device.

Dims: N rows, G lists.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Pieces(NamedTuple):
    """P pieces; all rows of one have the same list.

    Attributes:
        rows: (N,) int64, the rows by their list.
        lists: (P,) int64, the list of each piece.
        begins, ends: (P,) int64, where each piece lies in `rows`; some are empty.
    """

    rows: Tensor
    lists: Tensor
    begins: Tensor
    ends: Tensor

    @property
    def num_pieces(self) -> int:
        """P."""
        return len(self.lists)


@dataclass(frozen=True)
class Grouping:
    """The rows of each list; what pieces of any size are cut from."""

    rows: Tensor  # (N,) int64, by their list, in each ascending
    starts: Tensor | None  # (G+1,) int64, where each list begins; None: there is one list alone
    num_lists: int

    @classmethod
    def of(cls, groups: Tensor | None, num_rows: int, num_lists: int, device: torch.device) -> "Grouping":
        """The grouping by `groups` (N,), or all rows in one group."""
        if groups is None:
            return cls(torch.arange(num_rows, device=device), None, 1)
        ordered = torch.sort(groups, stable=True)
        starts = torch.searchsorted(ordered.values, torch.arange(num_lists + 1, device=device))
        return cls(ordered.indices, starts, num_lists)

    def cut(self, size: int) -> Pieces:
        """Pieces of at most `size` rows; their number depends on N and G alone, so nothing waits for the device."""
        num_rows, device = len(self.rows), self.rows.device
        if self.starts is None:
            begins = torch.arange(0, num_rows, size, device=device)
            return Pieces(self.rows, torch.zeros_like(begins), begins, (begins + size).clamp(max=num_rows))
        counts = self.starts.diff()  # (G,)
        num_pieces = (counts + size - 1) // size  # (G,)
        behind = num_pieces.cumsum(0)  # (G,)
        piece = torch.arange(min(num_rows, num_rows // size + self.num_lists), device=device)
        number = torch.searchsorted(behind, piece, right=True)
        is_there = number < self.num_lists
        lists = number.clamp(max=self.num_lists - 1)
        begins = self.starts[lists] + (piece - (behind - num_pieces)[lists]) * size
        ends = torch.minimum(begins + size, self.starts[lists + 1])
        return Pieces(self.rows, lists, begins.where(is_there, 0), ends.where(is_there, 0))

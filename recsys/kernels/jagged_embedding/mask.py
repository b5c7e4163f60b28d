"""Which values of the (T, D) token vectors a seed drops: a hash of (seed, token, column), the same for every path."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.kernels.attention.dropout import column_hash, drop, row_hash


@dataclass(frozen=True)
class Mask:
    """rows: (T,) int32. columns: (D,) int32. dropout_p: in (0, 1)."""

    rows: Tensor
    columns: Tensor
    dropout_p: float

    @classmethod
    def of(cls, seed: int, shape: torch.Size, dropout_p: float, device: torch.device) -> "Mask":
        """The mask of (T, D) values."""
        tokens, columns = (torch.arange(n, device=device) for n in shape)
        rows = row_hash(seed, tokens, torch.zeros_like(tokens), 1).squeeze(1)
        return cls(rows, column_hash(seed, columns, torch.zeros_like(columns), 1).squeeze(1), dropout_p)

    @property
    def factor(self) -> float:
        """What the kept values are multiplied by."""
        return 1.0 / (1.0 - self.dropout_p)

    def apply(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        """`x` with 0 where it is dropped, not yet times `factor`."""
        return drop(x, self.rows, self.columns, self.dropout_p, in_place=in_place)

"""Numbers in ascending order, equal ones as they came: what several sums over the same numbers share."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SegmentOrder:
    """P pairs of a row and a segment, by segment.

    Attributes:
        ids: (P,) int32 or int64, ascending.
        pairs: (P,) int64, where each stood before.
        starts: (S+1,) int64, where each segment begins in `ids`; what lies before the first or behind the last
            belongs to none.
    """

    ids: Tensor
    pairs: Tensor
    starts: Tensor

    @classmethod
    def of(cls, ids: Tensor, num_segments: int) -> "SegmentOrder":
        """The order of `ids`, of any shape, for segments 0 to num_segments - 1; nothing is read on the host."""
        narrow = torch.int32 if num_segments < 2**31 - 1 else torch.int64  # a radix sort takes half the passes
        flat = torch.where((ids >= 0) & (ids < num_segments), ids, -1).flatten().to(narrow)
        ordered = torch.sort(flat, stable=True)
        bounds = torch.arange(num_segments + 1, dtype=narrow, device=ids.device)
        return cls(ordered.values, ordered.indices, torch.searchsorted(ordered.values, bounds))

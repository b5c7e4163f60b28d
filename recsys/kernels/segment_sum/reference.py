"""The definition of segment_sum, in PyTorch.

Dims: R rows, K numbers a row, S segments, D width.
"""

import torch
from torch import Tensor


def segment_sum_reference(x: Tensor, ids: Tensor, num_segments: int, *, weights: Tensor | None = None) -> Tensor:
    """The definition, segment by segment. Arguments as in segment_sum."""
    ids = ids if ids.dim() == 2 else ids[:, None]  # (R, K)
    weights = torch.ones_like(ids, dtype=x.dtype) if weights is None else weights.view(ids.shape)
    sums = [x.new_zeros((0, x.shape[1]), dtype=torch.promote_types(x.dtype, weights.dtype))]
    for segment in range(num_segments):
        row, column = (ids == segment).nonzero(as_tuple=True)
        sums.append((weights[row, column, None] * x[row]).sum(0, keepdim=True))
    return torch.cat(sums)

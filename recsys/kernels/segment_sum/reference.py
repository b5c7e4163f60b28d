"""The definition of segment_sum, in PyTorch.

Dims: R rows, K numbers a row, S segments, D width.
"""

import torch
from torch import Tensor


def segment_sum_reference(x: Tensor, ids: Tensor, num_segments: int, *, weights: Tensor | None = None) -> Tensor:
    """The definition; it allocates (R, K, S). Arguments as in segment_sum."""
    ids = ids if ids.dim() == 2 else ids[:, None]  # (R, K)
    is_met = ids[..., None] == torch.arange(num_segments, device=ids.device)  # (R, K, S)
    shares = is_met.to(x.dtype)
    if weights is not None:
        shares = shares * weights.view(ids.shape)[..., None]
    return torch.einsum("rks,rd->sd", shares, x.to(shares.dtype))

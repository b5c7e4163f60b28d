"""A softmax over all keys from those over parts of them: each part's result, weighted by its share of the denominator.

lse = log(exp(lse_a) + exp(lse_b))          out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b
"""

import torch
from torch import Tensor

from recsys.kernels.attention.torch_path.sides import Side


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Out (..., D) and lse (...), in the dtype of lse."""
    lse = torch.logaddexp(lse_a, lse_b)
    share_a, share_b = (torch.exp(x - lse)[..., None] for x in (lse_a, lse_b))
    return out_a * share_a + out_b * share_b, lse


def merge_slots(side: Side, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Out (T, H, D) and lse (T, H) of filled buffers: the slots of a row merged."""
    rows_out, rows_lse = side.first(out), side.first(lse)
    for slots, rows in side.repeats:
        parts = rows_out.index_select(0, rows), rows_lse.index_select(0, rows), out[slots], lse[slots]
        merged_out, merged_lse = merge(*parts)
        rows_out.index_copy_(0, rows, merged_out.to(out.dtype))
        rows_lse.index_copy_(0, rows, merged_lse)
    return rows_out, rows_lse

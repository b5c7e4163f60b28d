"""What the kernels of search are called with. No field is None: what is absent is a tensor at hand, and never read."""

from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from recsys.kernels.bundles import Rows, block_of, unit_stride
from recsys.kernels.search.scoring import Scoring


class Flags(NamedTuple):
    """What a kernel is compiled for: widths, those of its tiles (0: there is no such tensor), and the dtype of sums."""

    D: int
    D2: int
    DV: int
    BLOCK_D: int
    BLOCK_D2: int
    BLOCK_DV: int
    HAS_BIAS: bool
    ACC: Any

    @classmethod
    def of(cls, scoring: Scoring, v: Tensor | None = None) -> "Flags":
        """Of a score, and of the values it weighs."""
        D, D2, DV = (0 if x is None else x.shape[2] for x in (scoring.q, scoring.q2, v))
        return cls(
            D=D,
            D2=D2,
            DV=DV,
            BLOCK_D=block_of(D),
            BLOCK_D2=block_of(D2),
            BLOCK_DV=block_of(DV),
            HAS_BIAS=scoring.k_bias is not None,
            ACC=tl.float64 if scoring.dtype == torch.float64 else tl.float32,
        )


def scored_rows(scoring: Scoring) -> tuple[Rows, ...]:
    """q, k, q2, k2 and bias."""
    q, k = unit_stride(scoring.q), unit_stride(scoring.k)
    q2 = q if scoring.q2 is None else unit_stride(scoring.q2)
    k2 = k if scoring.k2 is None else unit_stride(scoring.k2)
    bias = k if scoring.k_bias is None else scoring.k_bias
    return tuple(Rows.of(x) for x in (q, k, q2, k2, bias))

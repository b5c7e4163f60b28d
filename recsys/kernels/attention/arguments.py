"""The arguments of one `jagged_attention`, checked: what every path takes beside q, k and v."""

from dataclasses import dataclass

import numpy as np

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta


@dataclass(frozen=True, eq=False, kw_only=True)
class Arguments:
    """As in `jagged_attention`.

    Attributes:
        num_targets: (B,) int64 on the host, or None.
        silu_norm: divisor of the SiLU weights; None means softmax.
    """

    meta_q: JaggedMeta
    meta_k: JaggedMeta
    scale: float
    visibility: Visibility = Visibility()
    num_targets: np.ndarray | None = None
    silu_norm: float | None = None
    time_bias: TimeBias | None = None
    pos_bias: PosBias | None = None
    dropout_p: float = 0.0
    seed: int = 0

"""What a call of sampled_loss asks for, besides its tensors."""

from dataclasses import dataclass
from typing import Literal

from recsys.kernels.cross_entropy_rows import Reduction

Kind = Literal["softmax", "logq", "bce", "gbce"]


@dataclass(frozen=True)
class Settings:
    """kind: of the loss. beta: factor of the target's term. reduction: of the rows' losses."""

    kind: Kind
    beta: float
    reduction: Reduction

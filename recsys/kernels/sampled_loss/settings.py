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

    def share(self, num_rows: int) -> float:
        """What each of so many rows counts in the reduced loss."""
        return 1.0 / max(num_rows, 1) if self.reduction == "mean" else 1.0

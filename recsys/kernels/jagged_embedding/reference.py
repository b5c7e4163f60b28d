"""The definition of jagged_embedding, in PyTorch.

Dims: T tokens, V items, P positions, D width.
"""

import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.attention.dropout import dropped
from recsys.kernels.jagged_embedding.mask import Mask


def jagged_embedding_reference(
    w: Tensor,
    ids: Tensor,
    *,
    pos: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """The definition. Arguments as in jagged_embedding."""
    x = F.embedding(ids, w, padding_idx) * scale  # (T, D)
    if pos is not None:
        assert positions is not None
        x = x + F.embedding(positions, pos)
    if dropout_p > 0.0:
        assert seed is not None
        mask = Mask.of(seed, x.shape, dropout_p, x.device)
        x = x.masked_fill(dropped(mask.rows, mask.columns, dropout_p), 0.0) * mask.factor
    return x

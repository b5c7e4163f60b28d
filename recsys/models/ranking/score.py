"""The one place where a model becomes scores: evaluation, batch recommendation and the server all call it.

Dims: B users, V items, D width.
"""

import torch
from torch import Tensor

from recsys.features.batches import JaggedBatch
from recsys.models.protocols import NextItemModel, Scorer


@torch.no_grad()
def scores_of(scorer: NextItemModel | Scorer, batch: JaggedBatch, item_vectors: Tensor | None = None) -> Tensor:
    """The score of every item for every history of the batch; higher is better.

    Args:
        scorer: a model (in eval mode) or a Scorer.
        batch: B histories; a model reads the last `max_len` items of each, the batch must not hold more.
        item_vectors: (V+1, D), `scorer.item_vectors()` kept from an earlier call; a model's only. In float64 the dot
            products are taken in float64 and rounded once, so that they do not depend on how many rows are scored at a
            time (a float32 product does, in its last bit).

    Returns:
        (B, V+1) float32: column j is item j; column 0 (padding) is -inf.
    """
    if not isinstance(scorer, NextItemModel):
        return scorer.scores(batch).float()
    return scores_of_states(scorer.encode(batch), scorer.item_vectors() if item_vectors is None else item_vectors)


def scores_of_states(states: Tensor, item_vectors: Tensor) -> Tensor:
    """(B, V+1) float32 scores of states (B, D), summed in the dtype of `item_vectors`; column 0 (padding) is -inf."""
    scores = (states.to(item_vectors.dtype) @ item_vectors.T).float()  # (B, V+1)
    scores[:, 0] = -torch.inf
    return scores

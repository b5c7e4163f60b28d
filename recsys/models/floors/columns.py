"""All items, or the candidates that are asked."""

from torch import Tensor

from recsys.features.batches import JaggedBatch


def columns(scores: Tensor, candidates: Tensor | None, batch: JaggedBatch) -> Tensor:
    """(B, V+1) scores on the batch's device, or (B, K) where candidates are asked."""
    scores = scores.to(batch.values.device)
    return scores if candidates is None else scores.gather(1, candidates)

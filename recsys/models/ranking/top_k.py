"""The k best columns of each row, ties to the lower index."""

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first; equal scores stand in the order of their index.

    Args:
        scores: (B, C) float; `-inf` marks what may not be chosen.
        k: at most this many; fewer where the row has fewer columns.

    Returns:
        Indices (B, k') int64 and scores (B, k'), k' = min(k, C). Places that only `-inf` could fill hold score `-inf`.

    Raises:
        ValueError: k < 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    k = min(k, scores.shape[1])
    values, indices = torch.topk(scores, k, dim=1, sorted=True)
    if k < scores.shape[1]:
        _settle_border_ties(scores, values, indices)
    indices, order = indices.sort(dim=1)
    values = values.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return indices.gather(1, order), values


def _settle_border_ties(scores: Tensor, values: Tensor, indices: Tensor) -> None:
    """Where more columns share the k-th score than places are left, give those places to the lowest indices."""
    border = values[:, -1:]  # (B, 1)
    is_chosen = values == border
    is_tied = (scores == border).sum(dim=1) > is_chosen.sum(dim=1)
    for row in torch.nonzero(is_tied & torch.isfinite(border[:, 0])).flatten().tolist():
        lowest = torch.nonzero(scores[row] == border[row]).flatten()
        indices[row, is_chosen[row]] = lowest[: int(is_chosen[row].sum())]

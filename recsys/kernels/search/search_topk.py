"""The best K behaviours of a history for each candidate: the first stage of DARE, TWIN, SIM and their like.

    idx[c] = the K behaviours i of c's own sequence with the highest s_ci, highest first        (s_ci: scoring.py)

Order: higher scores first, and of equal ones the lower index; -0.0 equals 0.0. A NaN stands behind every number, so it
never displaces one. Every path keeps this order to the last tie; scores that differ by rounding alone may fall out
differently from path to path, as they do between any two matrix products.

Inference and selection only: no gradient. `topk_attend` scores the kept behaviours again, with gradients.

Paper: Feng et al. 2024, arXiv:2410.02604.

Dims: Tc candidates, Tk behaviours, H heads, D width, K kept.
"""

from typing import Any

import torch
from torch import Tensor

from recsys.kernels.backend import choose_backend
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search.scoring import Scoring, checked_scoring
from recsys.kernels.search.torch_search import search_topk_torch

MAX_TOP_K = 256


def search_topk_reference(scoring: Scoring, offsets_c: Tensor, offsets_k: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The definition, in PyTorch: all scores of one sequence at a time, sorted twice."""
    Tc, H, _ = scoring.q.shape
    idx = torch.full((Tc, H, top_k), -1, dtype=torch.int32, device=scoring.q.device)
    score = torch.full((Tc, H, top_k), -torch.inf, dtype=scoring.dtype, device=scoring.q.device)
    ends_c, ends_k = offsets_c.tolist(), offsets_k.tolist()
    for b in range(len(ends_c) - 1):
        c, i = slice(ends_c[b], ends_c[b + 1]), slice(ends_k[b], ends_k[b + 1])
        scores = scoring.of_sequence(c, i) + 0.0  # a negative zero becomes 0
        by_value = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf).sort(stable=True, descending=True).indices
        nan_last = scores.gather(2, by_value).isnan().to(torch.uint8).sort(stable=True).indices
        order = by_value.gather(2, nan_last)[..., :top_k]
        idx[c, :, : order.shape[2]] = order.to(torch.int32)
        score[c, :, : order.shape[2]] = scores.gather(2, order)
    return idx, score


def search_topk(
    q: Tensor,
    k: Tensor,
    meta_c: JaggedMeta,
    meta_k: JaggedMeta,
    top_k: int,
    *,
    scale: float | None = None,
    q2: Tensor | None = None,
    k2: Tensor | None = None,
    scale2: float | None = None,
    k_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Search each candidate's own sequence.

    Args:
        q: (Tc, D) float, candidates; or (Tc, H, D), where each head searches for itself.
        k: (Tk, D) or (Tk, H, D), behaviours; dtype and device of q.
        meta_c: candidates of each of B sequences, Tc in all; offsets on the device of q.
        meta_k: behaviours of each.
        top_k: K, 1 to 256.
        scale: of <q, k>; 1/sqrt(D) by default.
        q2, k2: (Tc, D2) and (Tk, D2), or with heads: a second pair, such as positions.
        scale2: of <q2, k2>; 1/sqrt(D2) by default.
        k_bias: (Tk,) or (Tk, H) float, added to the scores of a behaviour.

    Returns:
        idx, (Tc, K) or (Tc, H, K) int32: places within the sequence, best first, -1 where it has fewer than K.
        score, of the same shape, float32, or float64 for float64 inputs; -inf beside -1. Neither has a gradient.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree.
    """
    if not isinstance(top_k, int) or not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k={top_k}; wanted an integer from 1 to {MAX_TOP_K}")
    given = checked_scoring(q, k, meta_c, meta_k, scale, q2, k2, scale2, k_bias)
    s = given.with_heads()
    idx, score = _search_topk(
        s.q.detach(),
        top_k,
        s.k.detach(),
        meta_c.offsets,
        meta_k.offsets,
        meta_c.max_len,
        meta_k.max_len,
        s.scale,
        None if s.q2 is None else s.q2.detach(),
        None if s.k2 is None else s.k2.detach(),
        s.scale2,
        None if s.k_bias is None else s.k_bias.detach(),
    )
    return (idx, score) if q.dim() == 3 else (idx.squeeze(1), score.squeeze(1))


@torch.library.custom_op("recsys::search_topk", mutates_args=())
def _search_topk(
    q: Tensor,
    top_k: int,
    k: Tensor,
    offsets_c: Tensor,
    offsets_k: Tensor,
    max_c: int,
    max_k: int,
    scale: float,
    q2: Tensor | None,
    k2: Tensor | None,
    scale2: float,
    k_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scoring = Scoring(q=q, k=k, scale=scale, q2=q2, k2=k2, scale2=scale2, k_bias=k_bias)
    backend = choose_backend("search_topk", q)
    if backend == "reference":
        return search_topk_reference(scoring, offsets_c, offsets_k, top_k)
    if backend == "torch":
        return search_topk_torch(scoring, offsets_c, offsets_k, top_k)
    from recsys.kernels.search.triton_search import search_topk_triton

    return search_topk_triton(scoring, offsets_c, offsets_k, max_c, max_k, top_k)


@_search_topk.register_fake
def _search_topk_fake(q: Tensor, top_k: int, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (q.shape[0], q.shape[1], top_k)
    score = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(shape, dtype=torch.int32), score

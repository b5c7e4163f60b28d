"""The definition of `jagged_attention`: one sequence at a time, dense, plain torch, any dtype.

    score = scale * q k^T + biases          weight = exp(score - lse) or silu(score) / silu_norm, where the key is seen
    out   = (weight with dropped entries set to 0, the others divided by 1 - p) v

It allocates H x nq x nk for each sequence. Tests compare every faster path with it.

Paper: Vaswani et al. 2017, arXiv:1706.03762 (softmax); Zhai et al. 2024, arXiv:2402.17152 (silu, targets).
"""

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.dropout import column_hash, dropped, row_hash
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta


def jagged_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    meta_q: JaggedMeta,
    meta_k: JaggedMeta,
    *,
    scale: float,
    visibility: Visibility,
    silu_norm: float | None = None,
    num_targets: np.ndarray | None = None,
    time_bias: TimeBias | None = None,
    pos_bias: PosBias | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over the keys of its own sequence; arguments as in `jagged_attention`, checked there.

    Args:
        silu_norm: divisor of the SiLU weights; None means softmax.
        num_targets: (B,) int64.

    Returns:
        out (Tq, H, Dv) in the dtype of `v`, lse (Tq, H): -inf where no key is seen, and for SiLU.
    """
    outs, lses = [], []
    for b in range(meta_q.num_sequences):
        rows_q, rows_k = _rows(meta_q, b), _rows(meta_k, b)
        num_queries, num_keys = int(meta_q.lengths[b]), int(meta_k.lengths[b])
        scores = torch.einsum("qhd,khd->hqk", q[rows_q], k[rows_k]) * scale  # (H, nq, nk)
        if time_bias is not None:
            scores = scores + time_bias.scores(rows_q, rows_k).to(scores.dtype)
        if pos_bias is not None:
            at_k = torch.arange(num_keys, device=q.device)
            at_q = torch.arange(num_queries, device=q.device) + num_keys - num_queries
            scores = scores + pos_bias.scores(at_q, at_k, visibility.causal).to(scores.dtype)
        targets = 0 if num_targets is None else int(num_targets[b])
        sees = visibility.mask(num_queries, num_keys, targets, q.device)
        weights, lse = _silu(scores, sees, silu_norm) if silu_norm is not None else _softmax(scores, sees)
        if dropout_p > 0:
            weights = weights.masked_fill(_drops(scores, b, dropout_p, seed), 0.0) / (1.0 - dropout_p)
        outs.append(torch.einsum("hqk,khd->qhd", weights, v[rows_k]))
        lses.append(lse.transpose(0, 1))
    if not outs:
        nothing = q.sum() + k.sum() + v.sum()  # 0, and part of the graph
        return nothing.expand(0, q.shape[1], v.shape[2]), nothing.expand(0, q.shape[1])
    return torch.cat(outs), torch.cat(lses)


def _rows(meta: JaggedMeta, b: int) -> slice:
    start = int(meta.starts[b])
    return slice(start, start + int(meta.lengths[b]))


def _softmax(scores: Tensor, sees: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (H, nq, nk) and lse (H, nq); a row that sees no key has weights 0, lse -inf and no gradient."""
    is_empty = ~sees.any(dim=1, keepdim=True)  # (nq, 1)
    finite = scores.masked_fill(~(sees | is_empty), -torch.inf)
    if scores.shape[2] == 0:
        return finite, scores.new_full(scores.shape[:2], -torch.inf)
    lse = torch.logsumexp(finite, dim=2)  # (H, nq)
    weights = torch.exp(finite - lse[..., None]).masked_fill(~sees, 0.0)
    return weights, lse.masked_fill(is_empty[:, 0], -torch.inf)


def _silu(scores: Tensor, sees: Tensor, silu_norm: float) -> tuple[Tensor, Tensor]:
    weights = torch.nn.functional.silu(scores).masked_fill(~sees, 0.0) / silu_norm
    return weights, scores.new_full(scores.shape[:2], -torch.inf)


def _drops(scores: Tensor, b: int, dropout_p: float, seed: int) -> Tensor:
    """(H, nq, nk) bool."""
    num_heads, num_queries, num_keys = scores.shape
    queries, keys = (torch.arange(n, device=scores.device) for n in (num_queries, num_keys))
    rows = row_hash(seed, torch.full_like(queries, b), queries, num_heads)
    columns = column_hash(seed, torch.full_like(keys, b), keys, num_heads)
    return dropped(rows.t(), columns.t(), dropout_p)

"""One piece of attention by explicit scores, small enough for the cache: any device, with dropout.

    weight = exp(score - lse) * kept / (1 - p)                  out = weight v
    dscore = exp(score - lse) * (kept / (1 - p) * <dout, v> - <dout, out> + dlse)        kept is 0 or 1

Only lse is kept between the passes; scores and dropped weights are worked out again. Arithmetic is float32 or wider.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)  # powers of 2: exp is 100 times slower on the CPU where it underflows

Kept = Callable[[torch.dtype], Tensor]  # (n, H, queries, keys): 0, or 1 / (1 - p)


def dense_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, kept: Kept | None
) -> tuple[Tensor, Tensor]:
    """Out (n, H, queries, D) and lse (n, H, queries) of q (n, H, queries, D), k and v (n, H, keys, D)."""
    shape, q, k, v = q.shape[:3], _flat(q), _flat(k), _flat(v)
    weights = _scores(q * (scale * LOG2_E), k, bias, shape)  # (n * H, queries, keys)
    highest = weights.amax(dim=-1, keepdim=True)
    weights.sub_(highest).exp2_()
    total = weights.sum(dim=-1, keepdim=True)
    if kept is not None:
        weights.mul_(kept(weights.dtype).flatten(0, 1))
    out = torch.bmm(weights, v).div_(total)
    return out.view(*shape, -1), ((highest + total.log2()) / LOG2_E).view(shape)


def dense_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
    kept: Kept | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    shape, q, k, v, grad_out = q.shape[:3], _flat(q) * scale, _flat(k), _flat(v), _flat(grad_out)
    row_share = (grad_out * _flat(out)).sum(dim=-1, keepdim=True)  # (n * H, queries, 1)
    if grad_lse is not None:
        row_share -= grad_lse.reshape(row_share.shape)
    weights = _scores(q * LOG2_E, k, bias, shape)  # (n * H, queries, keys)
    weights.sub_(lse.reshape(row_share.shape) * LOG2_E).exp2_()  # none dropped
    grad_weights = torch.bmm(grad_out, v.transpose(1, 2))
    kept_weights = weights
    if kept is not None:
        factors = kept(weights.dtype).flatten(0, 1)
        grad_weights.mul_(factors)
        kept_weights = factors.mul_(weights)
    grad_v = torch.bmm(kept_weights.transpose(1, 2), grad_out)
    grad_scores = grad_weights.sub_(row_share).mul_(weights)
    grad_q, grad_k = torch.bmm(grad_scores, k).mul_(scale), torch.bmm(grad_scores.transpose(1, 2), q)
    n, num_heads, keys = *shape[:2], k.shape[1]
    return grad_q.view(*shape, -1), grad_k.view(n, num_heads, keys, -1), grad_v.view(n, num_heads, keys, -1)


def _flat(x: Tensor) -> Tensor:
    """(n * H, L, D), contiguous, float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1).contiguous()


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    if bias is not None:
        scores.view(*shape, -1).add_(bias)
    return scores

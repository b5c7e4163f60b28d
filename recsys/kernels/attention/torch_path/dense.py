"""One piece of attention by explicit scores, small enough for the cache: any device, with biases and dropout.

    weight = exp(score - lse) * kept / (1 - p)                  out = weight v
    dscore = exp(score - lse) * (kept / (1 - p) * <dout, v> - <dout, out> + dlse)        kept is 0 or 1

Only lse is kept between the passes; scores and dropped weights are worked out again. Arithmetic is float32 or wider.
A pass over the scores costs as much as their product, so 1 / (1 - p) goes to the narrow factors. `terms` are learned
biases; they take the gradient of the scores for their tables.

Under SiLU:

    weight = silu(score) / silu_norm                            dscore = silu'(score) * <dout, v> / silu_norm
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.attention.dropout import drop
from recsys.kernels.attention.torch_path.score_terms import ScoreTerm

LOG2_E = math.log2(math.e)  # powers of 2: exp is 100 times slower on the CPU where it underflows


@dataclass(frozen=True)
class Dropout:
    """What a piece drops.

    Attributes:
        rows: (n, H, queries) int32 hashes.
        columns: (n, H, keys) int32 hashes.
        p: in (0, 1).
    """

    rows: Tensor
    columns: Tensor
    p: float

    def drop(self, weights: Tensor, *, in_place: bool = False) -> Tensor:
        """(n * H, queries, keys) weights, those dropped set to 0."""
        return drop(weights, self.rows.flatten(0, 1), self.columns.flatten(0, 1), self.p, in_place=in_place)


def dense_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout: Dropout | None,
    terms: Sequence[ScoreTerm] = (),
) -> tuple[Tensor, Tensor]:
    """Out (n, H, queries, D) and lse (n, H, queries) of q (n, H, queries, D), k and v (n, H, keys, D)."""
    shape, q, k, v = q.shape[:3], _flat(q), _flat(k), _flat(v)
    weights = _scores(q * (scale * LOG2_E), k, bias, shape)  # (n * H, queries, keys)
    _add(terms, weights, shape, LOG2_E)
    highest = weights.amax(dim=-1, keepdim=True)
    weights.sub_(highest).exp2_()
    total = weights.sum(dim=-1, keepdim=True)
    lse = ((highest + total.log2()) / LOG2_E).view(shape)
    if dropout is not None:
        weights, total = dropout.drop(weights, in_place=True), total * (1.0 - dropout.p)
    return torch.bmm(weights, v).div_(total).view(*shape, -1), lse


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
    dropout: Dropout | None,
    terms: Sequence[ScoreTerm] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    shape, q, k, v, grad_out = q.shape[:3], _flat(q) * scale, _flat(k), _flat(v), _flat(grad_out)
    row_share = (grad_out * _flat(out)).sum(dim=-1, keepdim=True)  # (n * H, queries, 1)
    if grad_lse is not None:
        row_share -= grad_lse.reshape(row_share.shape)
    weights = _scores(q * LOG2_E, k, bias, shape)  # (n * H, queries, keys)
    _add(terms, weights, shape, LOG2_E)
    weights.sub_(lse.reshape(row_share.shape) * LOG2_E).exp2_()  # none dropped
    kept = weights if dropout is None else dropout.drop(weights)
    grad_out = grad_out if dropout is None else grad_out / (1.0 - dropout.p)
    grad_v = torch.bmm(kept.transpose(1, 2), grad_out)
    grad_scores = torch.bmm(grad_out, v.transpose(1, 2)).mul_(kept).addcmul_(weights, row_share, value=-1.0)
    grad_q, grad_k = _of_scores(grad_scores, q, k, scale, terms, shape)
    return grad_q, grad_k, grad_v.view(*grad_k.shape[:3], -1)


def silu_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, norm: float, terms: Sequence[ScoreTerm]
) -> Tensor:
    """Out (n, H, queries, D)."""
    shape, q, k, v = q.shape[:3], _flat(q), _flat(k), _flat(v)
    scores = _scores(q * scale, k, bias, shape)
    _add(terms, scores, shape, 1.0)
    return torch.bmm(F.silu(scores, inplace=True), v).div_(norm).view(*shape, -1)


def silu_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    norm: float,
    terms: Sequence[ScoreTerm],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    shape, q, k, v, grad_out = q.shape[:3], _flat(q) * scale, _flat(k), _flat(v), _flat(grad_out) / norm
    scores = _scores(q, k, bias, shape)
    _add(terms, scores, shape, 1.0)
    grad_v = torch.bmm(F.silu(scores).transpose(1, 2), grad_out)
    grad_scores = torch.ops.aten.silu_backward(torch.bmm(grad_out, v.transpose(1, 2)), scores)
    grad_q, grad_k = _of_scores(grad_scores, q, k, scale, terms, shape)
    return grad_q, grad_k, grad_v.view(*grad_k.shape[:3], -1)


def _of_scores(
    grad_scores: Tensor, q: Tensor, k: Tensor, scale: float, terms: Sequence[ScoreTerm], shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Gradients of q and k, of q that holds the scale; the terms take theirs."""
    for term in terms:
        term.add_gradient(grad_scores.view(*shape, -1))
    grad_q, grad_k = torch.bmm(grad_scores, k).mul_(scale), torch.bmm(grad_scores.transpose(1, 2), q)
    return grad_q.view(*shape, -1), grad_k.view(*shape[:2], *grad_k.shape[1:])


def _add(terms: Sequence[ScoreTerm], scores: Tensor, shape: torch.Size, factor: float) -> None:
    for term in terms:
        term.add_to(scores.view(*shape, -1), factor)


def _flat(x: Tensor) -> Tensor:
    """(n * H, L, D), contiguous, float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1).contiguous()


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, shape: torch.Size) -> Tensor:
    """<q, k> + bias. A bias that is the same for all queries rides in the product, as a further column."""
    if bias is not None and bias.shape[2] == 1:
        of_keys = bias.expand(*shape[:2], 1, -1).reshape(*k.shape[:2], 1)
        q, k, bias = torch.cat([q, q.new_ones(*q.shape[:2], 1)], -1), torch.cat([k, of_keys], -1), None
    scores = torch.bmm(q, k.transpose(1, 2))
    if bias is not None:
        scores.view(*shape, -1).add_(bias)
    return scores

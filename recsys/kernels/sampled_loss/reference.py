"""The definition of sampled_loss, in PyTorch.

Dims: N rows, G lists of negatives, K negatives a list, V items, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.sampled_loss.settings import Kind


def sampled_loss_reference(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Tensor,
    *,
    groups: Tensor | None = None,
    kind: Kind = "softmax",
    bias: Tensor | None = None,
    log_q: Tensor | None = None,
    beta: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The definition, in PyTorch; it allocates (N, K, D). The mean over no row is 0."""
    ids = negatives.expand(len(x), -1) if negatives.dim() == 1 else negatives if groups is None else negatives[groups]
    counts = (ids >= 0) & (ids != target[:, None])  # (N, K)
    ids = ids.clamp(min=0)
    s = (x * w[target]).sum(1)  # (N,)
    s_neg = torch.einsum("nd,nkd->nk", x, w[ids])
    if bias is not None:
        s, s_neg = s + bias[target], s_neg + bias[ids]
    if kind in ("bce", "gbce"):
        positive = F.logsigmoid(s) * (beta if kind == "gbce" else 1.0)
        negative = F.logsigmoid(-s_neg).masked_fill(~counts, 0.0).sum(1)
        losses = -(positive + negative) / (1 + counts.sum(1))
    elif kind == "softmax":
        if log_q is not None:
            s, s_neg = s - log_q[target], s_neg - log_q[ids]
        s_neg = s_neg.masked_fill(~counts, -torch.inf)
        losses = torch.cat([s[:, None], s_neg], 1).logsumexp(1) - s
    else:
        assert log_q is not None
        s_neg = s_neg - log_q[ids] + torch.log1p(-log_q[target].exp())[:, None]
        has_any = counts.any(1)
        nothing = torch.zeros_like(s).masked_fill(has_any, -torch.inf)[:, None]  # keeps the sum of no term finite
        lse = torch.cat([s_neg.masked_fill(~counts, -torch.inf), nothing], 1).logsumexp(1)
        num = counts.sum(1).clamp(min=1).to(s.dtype)  # the log of an integer is a float32
        rest = torch.sigmoid(lse - num.log() - s).detach()  # 1 - p
        losses = has_any * rest * (lse - s)
    if reduction == "none":
        return losses
    return losses.sum() / (max(len(x), 1) if reduction == "mean" else 1)

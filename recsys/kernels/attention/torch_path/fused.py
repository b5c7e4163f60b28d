"""One piece of attention by torch's fused kernel for the CPU, called below autograd for the lse that it computes.

`F.scaled_dot_product_attention` reaches the same kernel but hides the lse and makes a graph node for each call; a test
holds both equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Out (n, H, queries, D) and lse (n, H, queries) of q (n, H, queries, D), k and v (n, H, keys, D)."""
    q, scale = _scaled(q, scale)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=_expanded(bias, q, k), scale=scale
    )
    return out, lse


def fused_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    The kernel forms dscore = weight * (<dout, v> - <dout, out>). A further column with 1 in v, 0 in out and dlse in
    dout adds the gradient of lse to the first product alone.
    """
    width, factor = q.shape[-1], 1.0 if scale > 0 else scale
    q, scale = _scaled(q, scale)
    if grad_lse is not None:
        q, k, v, out = F.pad(q, (0, 1)), F.pad(k, (0, 1)), F.pad(v, (0, 1), value=1.0), F.pad(out, (0, 1))
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(-1).to(grad_out.dtype)], dim=-1)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, q, k, v, out, lse, 0.0, is_causal, attn_mask=_expanded(bias, q, k), scale=scale
    )
    grad_q = grads[0][..., :width] if factor == 1.0 else grads[0][..., :width] * factor
    return grad_q, grads[1][..., :width], grads[2][..., :width]


def _scaled(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """q and the scale that is left: the kernel hides keys by -inf before it scales, and 0 or less undoes that."""
    return (q, scale) if scale > 0 else (q * scale, 1.0)


def _expanded(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    return None if bias is None else bias.expand(q.shape[0], 1, q.shape[2], k.shape[2])

"""jagged_embedding in plain torch: one buffer forward, and gradients by index_add_, whose order is that of the tokens.

Dims: T tokens, V items, P positions, D width.
"""

from typing import Any

import torch
from torch import Tensor

from recsys.kernels.derivatives import first_only
from recsys.kernels.jagged_embedding.mask import Mask
from recsys.kernels.segment_sum import segment_sum


def token_vectors(
    w: Tensor, ids: Tensor, pos: Tensor | None, positions: Tensor | None, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """(T, D), without a graph."""
    x = w.index_select(0, ids)
    if scale != 1.0:
        x.mul_(scale)
    if pos is not None:
        assert positions is not None
        x.add_(pos.index_select(0, positions))
    if dropout_p > 0.0:
        mask = Mask.of(seed, x.shape, dropout_p, x.device)
        x = mask.apply(x, in_place=True).mul_(mask.factor)
    return x


def table_gradients(
    grad: Tensor,
    ids: Tensor,
    positions: Tensor | None,
    sizes: tuple[int, int],
    scale: float,
    dropout_p: float,
    seed: int,
    padding_idx: int | None,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients (V, D) of w and (P, D) of pos, None where not needed; `sizes` are V and P."""
    if dropout_p > 0.0:
        mask = Mask.of(seed, grad.shape, dropout_p, grad.device)
        grad = mask.apply(grad).mul_(mask.factor)
    grad_pos = grad_w = None
    if needs[1]:
        assert positions is not None
        grad_pos = segment_sum(grad, positions, sizes[1])
    if needs[0]:
        # Each row before it is added, as autograd does for the product: the same bits.
        grad_w = segment_sum(grad if scale == 1.0 else grad * scale, ids, sizes[0])
        if padding_idx is not None:
            grad_w[padding_idx] = 0.0
    return grad_w, grad_pos


class JaggedEmbedding(torch.autograd.Function):
    """token_vectors with its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        w: Tensor,
        pos: Tensor | None,
        ids: Tensor,
        positions: Tensor | None,
        scale: float,
        dropout_p: float,
        seed: int,
        padding_idx: int | None,
    ) -> Tensor:
        ctx.save_for_backward(ids, positions)
        ctx.sizes = len(w), 0 if pos is None else len(pos)
        ctx.numbers = scale, dropout_p, seed, padding_idx
        return token_vectors(w, ids, pos, positions, scale, dropout_p, seed)

    @staticmethod
    @first_only("jagged_embedding")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, positions = ctx.saved_tensors
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        scale, dropout_p, seed, padding_idx = ctx.numbers
        grads = table_gradients(grad, ids, positions, ctx.sizes, scale, dropout_p, seed, padding_idx, needs)
        return *grads, None, None, None, None, None, None

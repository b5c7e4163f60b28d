"""Vectors of the tokens of a jagged batch, and the gradients of their tables in a fixed order.

    out[t] = drop(scale * w[ids[t]] + pos[positions[t]])

Dropout is by a hash of (seed, token, column), the same for every path. The gradient of a table is a `segment_sum`: no
atomics, and bitwise the same for any number of threads. Out of range: on the CPU a ValueError; on a GPU, where to look
would be to wait, the token's vector is NaN and passes no gradient.

Dims: T tokens, V items, P positions, D width.
"""

from typing import Any, cast

import torch
from torch import Tensor

from recsys.kernels.backend import choose_backend
from recsys.kernels.factors import as_factor
from recsys.kernels.jagged_embedding.checks import check_numbers_of_rows, check_shapes
from recsys.kernels.jagged_embedding.reference import jagged_embedding_reference
from recsys.kernels.jagged_embedding.rows import JaggedEmbedding, table_gradients, token_vectors


def jagged_embedding(
    w: Tensor,
    ids: Tensor,
    *,
    pos: Tensor | None = None,
    positions: Tensor | None = None,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int | None = None,
    padding_idx: int | None = None,
) -> Tensor:
    """Rows of `w` times `scale`, plus rows of `pos`, with dropout.

    Args:
        w: (V, D) float.
        ids: (T,) int64 in [0, V).
        pos: (P, D) of the dtype of `w`; needs `positions`.
        positions: (T,) int64 in [0, P), the row of `pos` of each token.
        scale: factor of the rows of `w`; a Triton kernel is compiled for each value.
        dropout_p: share of the values that become 0, in [0, 1); the others are divided by 1 - dropout_p.
        seed: of the dropout; needed with it, another one each step.
        padding_idx: row of `w` that gets no gradient.

    Returns:
        (T, D) of the dtype of `w`. The gradient of a table is dense, summed in float32 at least.

    Raises:
        ValueError: shapes, dtypes or devices do not agree, or a number lies out of range (on a GPU: see above).
    """
    scale = as_factor("scale", scale)
    check_shapes(w, ids, pos, positions, dropout_p, seed, padding_idx)
    padding, step = -1 if padding_idx is None else padding_idx, 0 if seed is None else seed
    if torch.compiler.is_compiling():
        return _embed(w, pos, ids, positions, scale, dropout_p, step, padding)
    backend = choose_backend("jagged_embedding", w)
    if backend == "triton":
        return _embed(w, pos, ids, positions, scale, dropout_p, step, padding)
    check_numbers_of_rows("ids", ids, len(w))
    check_numbers_of_rows("positions", positions, 0 if pos is None else len(pos))
    if backend == "reference":
        numbers: dict[str, Any] = {"scale": scale, "dropout_p": dropout_p, "seed": seed, "padding_idx": padding_idx}
        return jagged_embedding_reference(w, ids, pos=pos, positions=positions, **numbers)
    out = JaggedEmbedding.apply(w, pos, ids, positions, scale, dropout_p, step, padding_idx)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(Tensor, out)


@torch.library.custom_op("recsys::jagged_embedding", mutates_args=())
def _embed(
    w: Tensor,
    pos: Tensor | None,
    ids: Tensor,
    positions: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int,
    padding_idx: int,  # noqa: ARG001  # the backward pass takes it from here
) -> Tensor:
    check_numbers_of_rows("ids", ids, len(w))
    check_numbers_of_rows("positions", positions, 0 if pos is None else len(pos))
    if choose_backend("jagged_embedding", w) == "triton":
        from recsys.kernels.jagged_embedding.triton_embedding import embed

        return embed(w, ids, pos, positions, scale, dropout_p, seed)
    return token_vectors(w, ids, pos, positions, scale, dropout_p, seed)


@_embed.register_fake
def _(w: Tensor, _pos: Tensor | None, ids: Tensor, *_: object) -> Tensor:
    return w.new_empty(ids.shape[0], w.shape[1])


@torch.library.custom_op("recsys::jagged_embedding_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    ids: Tensor,
    positions: Tensor | None,
    num_items: int,
    num_positions: int,
    scale: float,
    dropout_p: float,
    seed: int,
    padding_idx: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of w and pos; empty where not needed."""
    padding, needed = None if padding_idx < 0 else padding_idx, (needs[0], needs[1])
    sizes, numbers = (num_items, num_positions), (scale, dropout_p, seed, padding, needed)
    if choose_backend("jagged_embedding", grad) == "triton":
        from recsys.kernels.jagged_embedding.triton_embedding import gradients

        grads = gradients(grad, ids, positions, sizes, *numbers)
    else:
        grads = table_gradients(grad, ids, positions, sizes, *numbers)
    grad_w, grad_pos = (grad.new_empty((0, grad.shape[1])) if g is None else g for g in grads)
    return grad_w, grad_pos


@_gradients.register_fake
def _(
    grad: Tensor, _ids: Tensor, _positions: Tensor | None, num_items: int, num_positions: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    needs = rest[-1]
    sizes = (num_items if needs[0] else 0, num_positions if needs[1] else 0)
    grad_w, grad_pos = (grad.new_empty((size, grad.shape[1])) for size in sizes)
    return grad_w, grad_pos


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001  # torch passes it by name
    w, pos, ids, positions, *ctx.numbers = inputs
    ctx.sizes = w.shape[0], 0 if pos is None else pos.shape[0]
    ctx.save_for_backward(ids, positions)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ids, positions = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:2])
    grads = _gradients(grad, ids, positions, *ctx.sizes, *ctx.numbers, needs)
    return *(g if is_needed else None for g, is_needed in zip(grads, needs, strict=True)), *([None] * 6)


_embed.register_autograd(_backward, setup_context=_keep)

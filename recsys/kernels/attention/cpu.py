"""The torch path of `jagged_attention`: self and cross, bidirectional, causal and window, with gradient.

Sequences of similar length run together in torch's fused attention for the CPU (`plan.py` groups them once a batch);
queries, keys and values are gathered once, and outputs and gradients come back by one inverse permutation. With
dropout, in float16, or off the CPU, small score matrices are formed instead (`dense.py`). Memory is linear in the
length.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys.kernels.attention.dense import Dropout, dense_backward, dense_forward
from recsys.kernels.attention.dropout import column_hash, row_hash
from recsys.kernels.attention.fused import fused_backward, fused_forward
from recsys.kernels.attention.plan import make_plan
from recsys.kernels.attention.tiles import Piece, Plan, Side, Tile
from recsys.kernels.jagged import JaggedMeta

MASK_CELLS = 1 << 20  # of a mask beside the fused kernel
SCORE_CELLS = 1 << 20  # of explicit scores, all heads: more leave the cache, fewer start too many small operations
FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def jagged_attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    meta_q: JaggedMeta,
    meta_k: JaggedMeta,
    *,
    scale: float,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over the keys of its own sequence; arguments as in `jagged_attention`, checked there.

    Returns:
        out (Tq, H, Dv) in the dtype of v, lse (Tq, H) float32 or, for float64 inputs, float64.
    """
    is_dense = dropout_p > 0 or q.device.type != "cpu" or q.dtype not in FUSED_DTYPES
    max_cells = max(1, SCORE_CELLS // q.shape[1]) if is_dense else MASK_CELLS
    other = None if meta_k is meta_q else meta_k  # a meta that held itself would wait for the garbage collector
    plan = meta_q.cached(
        (other, causal, window, max_cells, is_dense),
        lambda: make_plan(meta_q, meta_k, causal, window, max_cells, is_dense),
    )
    kernel = _Kernel(is_dense, scale, dropout_p, seed)
    with torch.autocast(q.device.type, enabled=False):
        result = _JaggedAttention.apply(q, k, v, plan, kernel)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(tuple[Tensor, Tensor], result)


@dataclass(frozen=True)
class _Kernel:
    """What runs a piece."""

    is_dense: bool
    scale: float
    dropout_p: float
    seed: int

    def hashes(self, plan: Plan, num_heads: int) -> tuple[Tensor, Tensor] | None:
        """(slots, H) int32 of queries and keys, which say what is dropped; None without dropout."""
        if self.dropout_p == 0:
            return None
        rows = row_hash(self.seed, plan.queries.sequences, plan.queries.places, num_heads)
        return rows, column_hash(self.seed, plan.keys.sequences, plan.keys.places, num_heads)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, piece: Piece, hashes: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Out and lse of a piece."""
        if self.is_dense:
            return dense_forward(q, k, v, piece.bias(_wide(q.dtype)), self.scale, self._dropout(hashes))
        return fused_forward(q, k, v, piece.bias(q.dtype), self.scale, piece.is_causal)

    def backward(
        self,
        grads: tuple[Tensor, Tensor | None],
        saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        piece: Piece,
        hashes: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v; `grads` are those of out and lse, `saved` is (q, k, v, out, lse)."""
        if self.is_dense:
            return dense_backward(*grads, *saved, piece.bias(_wide(saved[0].dtype)), self.scale, self._dropout(hashes))
        return fused_backward(*grads, *saved, piece.bias(saved[0].dtype), self.scale, piece.is_causal)

    def _dropout(self, hashes: tuple[Tensor, Tensor] | None) -> Dropout | None:
        return None if hashes is None else Dropout(*hashes, self.dropout_p)


class _JaggedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, kernel: _Kernel) -> tuple[Tensor, Tensor]:
        width = max(q.shape[2], v.shape[2])
        slots = _slots(plan.queries, q, width), _slots(plan.keys, k, width), _slots(plan.keys, v, width)
        out = plan.queries.buffer(q.shape[1], width, dtype=q.dtype, device=q.device)
        lse = plan.queries.buffer(q.shape[1], dtype=_wide(q.dtype), device=q.device, fill=-torch.inf)
        hashes = kernel.hashes(plan, q.shape[1])
        for tile in plan.tiles:
            tile_q, tile_out, tile_lse = (tile.queries_of(x) for x in (slots[0], out, lse))
            tile_k, tile_v = tile.keys_of(slots[1]), tile.keys_of(slots[2])
            for piece in tile.pieces:
                parts = piece.queries_of(tile_q), piece.keys_of(tile_k), piece.keys_of(tile_v)
                part_out, part_lse = kernel.forward(*parts, piece, _hashes_of(hashes, tile, piece))
                piece.queries_of(tile_out).copy_(part_out)
                piece.queries_of(tile_lse).copy_(part_lse)
        ctx.save_for_backward(*slots, out, lse)
        ctx.plan, ctx.kernel, ctx.hashes, ctx.widths = plan, kernel, hashes, (q.shape[2], v.shape[2])
        ctx.set_materialize_grads(False)
        return plan.queries.scatter(out)[..., : v.shape[2]], plan.queries.scatter(lse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        slots_q, slots_k, slots_v, out, lse = ctx.saved_tensors
        plan, kernel, (width_q, width_v) = ctx.plan, ctx.kernel, ctx.widths
        slots_do = _slots_of_grad(plan.queries, grad_out, like=out[:-1])
        slots_dlse = None if grad_lse is None else _slots_of_grad(plan.queries, grad_lse, like=lse[:-1])
        grad_q = plan.queries.buffer(*slots_q.shape[1:], dtype=slots_q.dtype, device=slots_q.device)
        grad_k, grad_v = (x.new_zeros(x.shape[0] + 1, *x.shape[1:], dtype=lse.dtype) for x in (slots_k, slots_v))
        for tile in plan.tiles:
            tile_q, tile_out, tile_lse, tile_do = (tile.queries_of(x) for x in (slots_q, out, lse, slots_do))
            tile_k, tile_v = tile.keys_of(slots_k), tile.keys_of(slots_v)
            tile_dlse = None if slots_dlse is None else tile.queries_of(slots_dlse)
            for piece in tile.pieces:
                grads = piece.queries_of(tile_do), None if tile_dlse is None else piece.queries_of(tile_dlse)
                inputs = piece.queries_of(tile_q), piece.keys_of(tile_k), piece.keys_of(tile_v)
                saved = (*inputs, piece.queries_of(tile_out), piece.queries_of(tile_lse))
                parts = kernel.backward(grads, saved, piece, _hashes_of(ctx.hashes, tile, piece))
                piece.queries_of(tile.queries_of(grad_q)).copy_(parts[0])
                piece.keys_of(tile.keys_of(grad_k)).add_(parts[1])
                piece.keys_of(tile.keys_of(grad_v)).add_(parts[2])
        rows_q = plan.queries.scatter(grad_q)
        rows_k, rows_v = (plan.keys.scatter(x).to(out.dtype) for x in (grad_k, grad_v))
        return rows_q[..., :width_q], rows_k[..., :width_q], rows_v[..., :width_v], None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _hashes_of(hashes: tuple[Tensor, Tensor] | None, tile: Tile, piece: Piece) -> tuple[Tensor, Tensor] | None:
    """(items, H, queries) and (items, H, keys)."""
    if hashes is None:
        return None
    return piece.queries_of(tile.queries_of(hashes[0])), piece.keys_of(tile.keys_of(hashes[1]))


def _slots(side: Side, rows: Tensor, width: int) -> Tensor:
    """(slots, H, width): the fused kernel wants queries and values of one width; zeros change nothing."""
    slots = side.gather(rows)
    return slots if slots.dim() < 3 or slots.shape[-1] == width else F.pad(slots, (0, width - slots.shape[-1]))


def _slots_of_grad(side: Side, grad: Tensor | None, like: Tensor) -> Tensor:
    """Gradient of the slots, (slots, H, width); padding has none."""
    if grad is None:
        return torch.zeros_like(like)
    slots = _slots(side, grad, like.shape[-1])
    return slots.index_fill_(0, side.padding, 0.0) if len(side.padding) else slots

"""The torch path of `jagged_attention`: every mask, bias and kind of weight, self and cross, with gradient.

Queries see keys in regions without a mask of their own (`regions.py`), and regions of similar size run together
(`plan.py` groups them once a batch); queries, keys and values are gathered once, and outputs and gradients come back by
one inverse permutation. Each piece runs in torch's fused attention for the CPU, or by small explicit score matrices
(`pieces.py`). Results of a query from several regions or blocks of keys are merged. Memory is linear in the length.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.torch_path.merging import merge, merge_slots
from recsys.kernels.attention.torch_path.pieces import Kernel, Run, wide
from recsys.kernels.attention.torch_path.plan import Cut, make_plan
from recsys.kernels.attention.torch_path.sides import Side
from recsys.kernels.attention.torch_path.tiles import Piece, Plan
from recsys.kernels.derivatives import first_only

MASK_CELLS = 1 << 20  # of a mask beside the fused kernel
SCORE_CELLS = 1 << 20  # of explicit scores, all heads: more leave the cache, fewer start too many small operations
BLOCK_CELLS, BLOCK_ROWS, BLOCK_KEYS = 1 << 19, 128, 512  # of explicit scores with a bias or silu
FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def jagged_attention_torch(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Attention of every query over the keys of its own sequence, with a graph; the arguments are checked before.

    Returns:
        out (Tq, H, Dv) in the dtype of v, lse (Tq, H) float32 or, for float64 inputs, float64; -inf for SiLU.
    """
    tables = [None if bias is None else bias.table for bias in (arguments.time_bias, arguments.pos_bias)]
    result = _JaggedAttention.apply(q, k, v, *tables, arguments)  # type: ignore[no-untyped-call]  # torch has no types for it
    return cast(tuple[Tensor, Tensor], result)


def torch_forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Out and lse as of `jagged_attention_torch`, without a graph."""
    out, lse, _ = _forward(q, k, v, arguments)
    return out, lse


def torch_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, arguments: Arguments
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v and the tables, with nothing kept from the forward pass: it is run again."""
    _, _, saved = _forward(q, k, v, arguments)
    return _backward(grad_out, grad_lse, saved.tensors, saved)


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What the backward pass needs: gathered q, k, v; out and lse in slots or, where slots repeat, in rows; tables."""

    tensors: tuple[Tensor | None, ...]
    plan: Plan
    run: Run
    widths: tuple[int, int]


def _plan_of(q: Tensor, arguments: Arguments) -> tuple[Plan, Kernel]:
    meta_q, meta_k, targets = arguments.meta_q, arguments.meta_k, arguments.num_targets
    is_blocked = not (arguments.silu_norm is None and arguments.time_bias is None and arguments.pos_bias is None)
    is_dense = is_blocked or arguments.dropout_p > 0 or q.device.type != "cpu" or q.dtype not in FUSED_DTYPES
    cut = _cut(is_dense, is_blocked, q.shape[1])
    other = None if meta_k is meta_q else meta_k  # a meta that held itself would wait for the garbage collector
    plan = meta_q.cached(
        (other, arguments.visibility, None if targets is None else targets.tobytes(), cut),
        lambda: make_plan(meta_q, meta_k, arguments.visibility, targets, cut),
    )
    return plan, Kernel(is_dense, arguments.scale, arguments.dropout_p, arguments.seed, arguments.silu_norm)


def _cut(is_dense: bool, is_blocked: bool, num_heads: int) -> Cut:
    if is_blocked:
        return Cut(True, max(1, BLOCK_CELLS // num_heads), BLOCK_ROWS, BLOCK_KEYS)
    return Cut(is_dense, max(1, SCORE_CELLS // num_heads) if is_dense else MASK_CELLS)


class _JaggedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        _time_table: Tensor | None,
        _pos_table: Tensor | None,
        arguments: Arguments,
    ) -> tuple[Tensor, Tensor]:
        out, lse, saved = _forward(q, k, v, arguments)
        ctx.save_for_backward(*saved.tensors)
        ctx.saved = replace(saved, tensors=())
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @first_only("jagged_attention")
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_backward(grad_out, grad_lse, ctx.saved_tensors, ctx.saved), None


def _forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor, _Saved]:
    """Out (Tq, H, Dv), lse (Tq, H), and what the backward pass needs."""
    plan, kernel = _plan_of(q, arguments)
    biases = arguments.time_bias, arguments.pos_bias
    width, wide_dtype = max(q.shape[2], v.shape[2]), wide(q.dtype)
    slots = _slots(plan.queries, q, width), _slots(plan.keys, k, width), _slots(plan.keys, v, width)
    out_dtype = wide_dtype if plan.has_parts else q.dtype
    out = plan.queries.buffer(q.shape[1], width, dtype=out_dtype, device=q.device)
    lse = plan.queries.buffer(q.shape[1], dtype=wide_dtype, device=q.device, fill=-torch.inf)
    run = kernel.start(plan, q.shape[1], (*biases, arguments.visibility.causal))
    for tile in plan.tiles:
        tile_q, tile_out, tile_lse = (tile.queries_of(x) for x in (slots[0], out, lse))
        tile_k, tile_v = tile.keys_of(slots[1]), tile.keys_of(slots[2])
        for piece in tile.pieces:
            parts = piece.queries_of(tile_q), piece.keys_of(tile_k), piece.keys_of(tile_v)
            part_out, part_lse = run.forward(*parts, tile, piece)
            _keep(piece, (tile_out, tile_lse), part_out, part_lse)
    rows_out, rows_lse = _rows_of(plan.queries, out, lse, kernel.is_softmax)
    rows_out = rows_out.to(q.dtype)
    if not kernel.is_dense and not bool(torch.isfinite(q.sum())):
        lost = (q * 0).sum(-1)  # NaN for queries that are not finite: of few keys the fused kernel makes zeros of them
        rows_out, rows_lse = rows_out + lost.unsqueeze(-1), rows_lse + lost.to(rows_lse.dtype)
    kept = (rows_out, rows_lse) if plan.queries.repeats else (out, lse)
    tables = (None if bias is None else bias.table for bias in biases)  # saved: to notice that one has changed
    saved = _Saved(tensors=(*slots, *kept, *tables), plan=plan, run=run, widths=(q.shape[2], v.shape[2]))
    return rows_out[..., : v.shape[2]], rows_lse, saved


def _backward(
    grad_out: Tensor | None, grad_lse: Tensor | None, tensors: tuple[Tensor | None, ...], saved: _Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of q, k, v and the tables."""
    slots_q, slots_k, slots_v, out, lse = cast(tuple[Tensor, ...], tensors[:5])
    plan, (width_q, width_v) = saved.plan, saved.widths
    if plan.queries.repeats:
        out, lse = plan.queries.gather(out), plan.queries.gather(lse)
    num_slots = plan.queries.num_slots
    slots_do = _slots_of_grad(plan.queries, grad_out, like=out[:num_slots])
    slots_dlse = None if grad_lse is None else _slots_of_grad(plan.queries, grad_lse, like=lse[:num_slots])
    dtype_q = lse.dtype if plan.has_parts else slots_q.dtype
    grad_q = plan.queries.buffer(*slots_q.shape[1:], dtype=dtype_q, device=slots_q.device)
    grad_k, grad_v = (x.new_zeros(x.shape[0] + 1, *x.shape[1:], dtype=lse.dtype) for x in (slots_k, slots_v))
    run = saved.run.again()
    for tile in plan.tiles:
        tile_q, tile_out, tile_lse, tile_do = (tile.queries_of(x) for x in (slots_q, out, lse, slots_do))
        tile_k, tile_v = tile.keys_of(slots_k), tile.keys_of(slots_v)
        tile_dlse = None if slots_dlse is None else tile.queries_of(slots_dlse)
        for piece in tile.pieces:
            grads = piece.queries_of(tile_do), None if tile_dlse is None else piece.queries_of(tile_dlse)
            inputs = piece.queries_of(tile_q), piece.keys_of(tile_k), piece.keys_of(tile_v)
            of_piece = (*inputs, piece.queries_of(tile_out), piece.queries_of(tile_lse))
            parts = run.backward(grads, of_piece, tile, piece)
            part_q = piece.queries_of(tile.queries_of(grad_q))
            part_q.copy_(parts[0]) if piece.is_first else part_q.add_(parts[0])
            piece.keys_of(tile.keys_of(grad_k)).add_(parts[1])
            piece.keys_of(tile.keys_of(grad_v)).add_(parts[2])
    rows_q = plan.queries.scatter(grad_q).to(slots_q.dtype)
    rows_k, rows_v = (plan.keys.scatter(x).to(slots_q.dtype) for x in (grad_k, grad_v))
    of_time, of_pos = (
        None if x is None or table is None else x.to(table.dtype)
        for x, table in zip(run.table_grads, tensors[5:], strict=True)
    )
    return rows_q[..., :width_q], rows_k[..., :width_q], rows_v[..., :width_v], of_time, of_pos


def _keep(piece: Piece, results: tuple[Tensor, Tensor], part_out: Tensor, part_lse: Tensor | None) -> None:
    """Write a piece's out and lse to those of its tile; add or merge them where other keys came first."""
    out, lse = (piece.queries_of(x) for x in results)
    if piece.is_first:
        out.copy_(part_out)
        lse.fill_(-torch.inf) if part_lse is None else lse.copy_(part_lse)
    elif part_lse is None:
        out.add_(part_out)
    else:
        merged_out, merged_lse = merge(out, lse, part_out, part_lse)
        out.copy_(merged_out)
        lse.copy_(merged_lse)


def _rows_of(side: Side, out: Tensor, lse: Tensor, is_softmax: bool) -> tuple[Tensor, Tensor]:
    """Out (T, H, D) and lse (T, H) of filled buffers."""
    if side.repeats and is_softmax:
        return merge_slots(side, out, lse)
    return side.scatter(out), side.first(lse)


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

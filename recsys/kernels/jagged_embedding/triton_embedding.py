# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""jagged_embedding by Triton: one kernel forward; backward, one that drops and the sums by segment.

The gradient is dropped in its own dtype, where a value stays as it is or becomes 0; factors come after the sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.attention.dropout import threshold
from recsys.kernels.jagged_embedding.mask import Mask
from recsys.kernels.launch import launch_of
from recsys.kernels.segment_sum import segment_sum

MAX_BLOCK_D = 128


def embed(
    w: Tensor, ids: Tensor, pos: Tensor | None, positions: Tensor | None, scale: float, dropout_p: float, seed: int
) -> Tensor:
    """(T, D)."""
    (V, D), T = w.shape, len(ids)
    out = torch.empty((T, D), dtype=w.dtype, device=w.device)
    if out.numel() == 0:
        return out
    mask = Mask.of(seed, out.shape, dropout_p, w.device) if dropout_p > 0.0 else None
    block, launch = _launch("forward", D, w.device)
    _embed_kernel[(triton.cdiv(T, launch["BLOCK_T"]), triton.cdiv(D, block))](
        w.contiguous(),
        ids.contiguous(),
        None if pos is None else pos.contiguous(),
        None if positions is None else positions.contiguous(),
        None if mask is None else mask.rows,
        None if mask is None else mask.columns,
        out,
        T,
        V,
        0 if pos is None else len(pos),
        D,
        SCALE=scale,
        FACTOR=1.0 if mask is None else mask.factor,
        THRESHOLD=threshold(dropout_p),
        HAS_POSITIONS=pos is not None,
        HAS_DROPOUT=mask is not None,
        ACC=tl.float64 if w.dtype == torch.float64 else tl.float32,
        BLOCK_D=block,
        **launch,
    )
    return out


def gradients(
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
    factor = 1.0
    if dropout_p > 0.0:
        mask = Mask.of(seed, grad.shape, dropout_p, grad.device)
        grad, factor = _dropped(grad.contiguous(), mask), mask.factor
    grad_w = grad_pos = None
    if needs[0]:
        grad_w = segment_sum(grad, ids, sizes[0], scale=scale * factor)
        if padding_idx is not None:
            grad_w[padding_idx] = 0.0
    if needs[1]:
        assert positions is not None
        grad_pos = segment_sum(grad, positions, sizes[1], scale=factor)
    return grad_w, grad_pos


def _dropped(grad: Tensor, mask: Mask) -> Tensor:
    out = torch.empty_like(grad)
    if out.numel() == 0:
        return out
    T, D = grad.shape
    block, launch = _launch("drop", D, grad.device)
    _drop_kernel[(triton.cdiv(T, launch["BLOCK_T"]), triton.cdiv(D, block))](
        grad, mask.rows, mask.columns, out, T, D, THRESHOLD=threshold(mask.dropout_p), BLOCK_D=block, **launch
    )
    return out


def _launch(kernel: str, D: int, device: torch.device) -> tuple[int, dict[str, int]]:
    block = min(MAX_BLOCK_D, max(16, triton.next_power_of_2(D)))
    return block, dict(launch_of("jagged_embedding", kernel, device, width=block))


@triton.jit(do_not_specialize=["T"])
def _embed_kernel(
    w_ptr,
    ids_ptr,
    pos_ptr,
    positions_ptr,
    row_hash_ptr,
    column_hash_ptr,
    out_ptr,
    T,
    V,
    P,
    D,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    THRESHOLD: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here = (t < T)[:, None] & (d < D)[None, :]
    x = _rows(w_ptr, ids_ptr, t, d, T, V, D, ACC) * SCALE
    if HAS_POSITIONS:
        x += _rows(pos_ptr, positions_ptr, t, d, T, P, D, ACC)
    if HAS_DROPOUT:
        is_kept = _is_kept(row_hash_ptr, column_hash_ptr, t, d, T, D, THRESHOLD)
        x = tl.where(is_kept, x * FACTOR, 0.0)
    tl.store(out_ptr + t[:, None] * D + d[None, :], x, mask=here)


@triton.jit(do_not_specialize=["T"])
def _drop_kernel(
    x_ptr,
    row_hash_ptr,
    column_hash_ptr,
    out_ptr,
    T,
    D,
    THRESHOLD: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    here = (t < T)[:, None] & (d < D)[None, :]
    place = t[:, None] * D + d[None, :]
    x = tl.load(x_ptr + place, mask=here, other=0.0)
    tl.store(
        out_ptr + place, tl.where(_is_kept(row_hash_ptr, column_hash_ptr, t, d, T, D, THRESHOLD), x, 0.0), mask=here
    )


@triton.jit
def _rows(table_ptr, numbers_ptr, t, d, T, num_rows, D, ACC: tl.constexpr):
    """[BLOCK_T, BLOCK_D]: rows of a table; NaN where a number is that of no row."""
    number = tl.load(numbers_ptr + t, mask=t < T, other=0)
    is_there = (number >= 0) & (number < num_rows)
    here = is_there[:, None] & (d < D)[None, :]
    rows = tl.load(table_ptr + tl.where(is_there, number, 0)[:, None] * D + d[None, :], mask=here, other=0.0).to(ACC)
    return tl.where(is_there[:, None], rows, float("nan"))


@triton.jit
def _is_kept(row_hash_ptr, column_hash_ptr, t, d, T, D, THRESHOLD: tl.constexpr):
    row = tl.load(row_hash_ptr + t, mask=t < T, other=0).to(tl.uint32)
    column = tl.load(column_hash_ptr + d, mask=d < D, other=0).to(tl.uint32)
    return (row[:, None] * column[None, :]).to(tl.int32) >= THRESHOLD  # an unsigned product may wrap

"""The Triton path of `jagged_attention`: allocates and launches; the arithmetic is in the kernels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.bias import PosBias
from recsys.kernels.attention.triton_path.bundles import Flags, bundles_of, wide_dtype
from recsys.kernels.attention.triton_path.chunks import chunks_of, num_splits
from recsys.kernels.attention.triton_path.launching import launch_for, short_launch
from recsys.kernels.attention.triton_path.triton_backward_keys import key_kernel
from recsys.kernels.attention.triton_path.triton_backward_queries import query_kernel
from recsys.kernels.attention.triton_path.triton_backward_short import short_kernel
from recsys.kernels.attention.triton_path.triton_forward import combine_kernel, forward_kernel
from recsys.kernels.attention.triton_path.triton_positions import position_kernel
from recsys.kernels.bundles import Rows, unit_stride

MOST_DOT_D = 64  # numbers of a row of float32 that the gradient of a position bias multiplies at a time
COMBINED_ROWS = 16  # a program joins the parts of so many rows
POSITION_SPLITS = 8  # parts of the batch in the gradient of a position bias

Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def triton_forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (Tq, H), a transposed (H, Tq): float32, or float64 for float64; -inf for SiLU."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    (total, num_heads, _), wide = q.shape, wide_dtype(q.dtype)
    out = torch.empty(total, num_heads, v.shape[2], dtype=v.dtype, device=v.device)
    lse = torch.empty(num_heads, total, dtype=wide, device=q.device)
    if arguments.silu_norm is not None:
        lse.fill_(-torch.inf)
    if total == 0:
        return out, lse.t()
    launch, flags = launch_for("forward", q, v, arguments), Flags.of(q, v, arguments)
    chunks = chunks_of(arguments.meta_q, launch["BLOCK_M"], arguments.visibility.causal)
    splits = num_splits(len(chunks) * num_heads, arguments.meta_k.max_len)
    outs, lses = out[None], lse[None]
    if splits > 1:
        outs = torch.empty(splits, *out.shape, dtype=wide, device=out.device)
        lses = torch.empty(splits, *lse.shape, dtype=wide, device=out.device)
    forward_kernel[(len(chunks) * num_heads, splits)](
        *(Rows.of(x) for x in (q, k, v, outs[0])),
        outs.stride(0),
        lses,
        lses.stride(1),
        lses.stride(0),
        chunks,
        *bundles_of(q, arguments),
        splits,
        num_heads,
        FLAGS=flags,
        **launch,
    )
    if splits > 1:
        combine_kernel[(triton.cdiv(total, COMBINED_ROWS) * num_heads,)](
            Rows.of(outs[0]),
            outs.stride(0),
            lses,
            lses.stride(1),
            lses.stride(0),
            Rows.of(out),
            lse,
            lse.stride(0),
            total,
            splits,
            num_heads,
            FLAGS=flags,
            BLOCK_M=COMBINED_ROWS,
        )
    return out, lse.t()


def triton_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    arguments: Arguments,
    needs_tables: tuple[bool, bool] = (True, True),
) -> Grads:
    """Gradients of q, k, v, and of the tables of the time and the position bias where there are any and wanted."""
    q, k, v, out, grad_out = (unit_stride(x) for x in (q, k, v, out, grad_out))
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    time, pos = arguments.time_bias, arguments.pos_bias
    if q.shape[0] == 0 or k.shape[0] == 0:
        no_time, no_pos = (None if bias is None else torch.zeros_like(bias.table) for bias in (time, pos))
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_(), no_time, no_pos
    lse = lse.t().contiguous()
    saved = _Saved(
        q=q,
        k=k,
        v=v,
        out=out,
        grad_out=grad_out,
        lse=lse,
        grad_lse=None if grad_lse is None else grad_lse.t().to(lse.dtype).contiguous(),
        delta=torch.empty_like(lse),
    )
    needs_time = time is not None and needs_tables[0]
    short = short_launch(q, v, arguments)
    if short is None:
        parts = _query_pass(saved, grad_q, arguments, needs_time)
        _key_pass(saved, grad_k, grad_v, arguments)
    else:
        parts = _short_pass(saved, (grad_q, grad_k, grad_v), arguments, needs_time, short)
    grad_time = None if parts is None or time is None else _of_table(parts.sum(dim=0), time.table)
    grad_pos = _position_pass(saved, arguments, pos) if pos is not None and needs_tables[1] else None
    return grad_q, grad_k, grad_v, grad_time, grad_pos


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What the backward kernels read; lse, grad_lse and delta are (H, Tq)."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    grad_out: Tensor
    lse: Tensor
    grad_lse: Tensor | None
    delta: Tensor  # written by the first kernel, read by the others


def _query_pass(saved: _Saved, grad_q: Tensor, arguments: Arguments, needs_time: bool) -> Tensor | None:
    """Fills grad_q and delta; returns the gradient of the time table in parts (chunks, H, NB)."""
    q, v = saved.q, saved.v
    launch, num_heads = launch_for("backward_queries", q, v, arguments), q.shape[1]
    chunks = chunks_of(arguments.meta_q, launch["BLOCK_M"], arguments.visibility.causal)
    parts = _time_parts(len(chunks), saved, arguments) if needs_time else None
    query_kernel[(len(chunks) * num_heads,)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.out, saved.grad_out, grad_q)),
        *_row_numbers(saved),
        saved.delta if parts is None else parts,
        chunks,
        *bundles_of(q, arguments),
        num_heads,
        FLAGS=Flags.of(q, v, arguments),
        **_backward_flags(arguments, saved, needs_time),
        **launch,
    )
    return parts


def _key_pass(saved: _Saved, grad_k: Tensor, grad_v: Tensor, arguments: Arguments) -> None:
    """Fills grad_k and grad_v."""
    q, v = saved.q, saved.v
    launch, num_heads = launch_for("backward_keys", q, v, arguments), q.shape[1]
    chunks = chunks_of(arguments.meta_k, launch["BLOCK_N"], False)
    key_kernel[(len(chunks) * num_heads,)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.grad_out, grad_k, grad_v)),
        saved.lse,
        saved.delta,
        saved.lse.stride(0),
        chunks,
        *bundles_of(q, arguments),
        num_heads,
        FLAGS=Flags.of(q, v, arguments),
        **launch,
    )


def _short_pass(
    saved: _Saved, grads: tuple[Tensor, ...], arguments: Arguments, needs_time: bool, launch: Mapping[str, int]
) -> Tensor | None:
    """Fills all of `grads` and delta; returns the gradient of the time table in parts (B, H, NB)."""
    q, v, num_heads, num_sequences = saved.q, saved.v, saved.q.shape[1], arguments.meta_q.num_sequences
    parts = _time_parts(num_sequences, saved, arguments) if needs_time else None
    short_kernel[(num_sequences * num_heads,)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.out, saved.grad_out, *grads)),
        *_row_numbers(saved),
        saved.delta if parts is None else parts,
        *bundles_of(q, arguments),
        num_heads,
        FLAGS=Flags.of(q, v, arguments),
        **_backward_flags(arguments, saved, needs_time),
        **launch,
    )
    return parts


def _position_pass(saved: _Saved, arguments: Arguments, bias: PosBias) -> Tensor:
    """The gradient of the position table."""
    q, v, causal = saved.q, saved.v, arguments.visibility.causal
    launch, num_heads = launch_for("backward_positions", q, v, arguments), q.shape[1]
    block, num_sequences = launch["BLOCK"], arguments.meta_q.num_sequences
    looks_ahead = not causal or arguments.num_targets is not None  # within its group a target does, causal or not
    first = -triton.cdiv(arguments.meta_q.max_len, block) if looks_ahead else 0
    last = triton.cdiv(arguments.meta_k.max_len, block) - 1
    if arguments.num_targets is None and arguments.visibility.num_global == 0:
        left, right = arguments.visibility.window
        first = first if right < 0 else max(first, -triton.cdiv(right, block))
        last = last if left < 0 else min(last, triton.cdiv(left, block))
    diagonals = last + 1 - first
    num_splits = min(POSITION_SPLITS, num_sequences)
    same = torch.empty(num_splits, num_heads, diagonals * block, dtype=saved.lse.dtype, device=q.device)
    before = torch.empty_like(same)
    flags = Flags.of(q, v, arguments)
    position_kernel[(diagonals * num_heads, num_splits)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.grad_out)),
        saved.lse,
        saved.delta,
        saved.lse.stride(0),
        same,
        before,
        *bundles_of(q, arguments),
        num_heads,
        num_sequences,
        first,
        diagonals,
        num_splits,
        FLAGS=flags,
        DOT_D=min(flags.BLOCK_D, flags.BLOCK_DV, MOST_DOT_D if q.element_size() > 2 else flags.BLOCK_D),
        **launch,
    )
    by_distance = same.new_zeros(num_heads, (diagonals + 1) * block)  # entry i: the distance (first - 1) * block + i
    by_distance[:, block:] += same.sum(dim=0)
    by_distance[:, :-block] += before.sum(dim=0)
    return _of_table(_fold(by_distance, (first - 1) * block, bias, causal), bias.table)


def _time_parts(rows: int, saved: _Saved, arguments: Arguments) -> Tensor:
    assert arguments.time_bias is not None
    num_buckets = arguments.time_bias.table.shape[1]
    return torch.empty(rows, saved.q.shape[1], num_buckets, dtype=saved.lse.dtype, device=saved.q.device)


def _of_table(by_head: Tensor, table: Tensor) -> Tensor:
    """(H, NB), or its sum over the heads for a table that they share."""
    return (by_head if table.shape[0] > 1 else by_head.sum(dim=0, keepdim=True)).to(table.dtype)


def _fold(by_distance: Tensor, lowest: int, bias: PosBias, causal: bool) -> Tensor:
    """(H, NB) sums of (H, distances from `lowest` on) over the distances of each bucket, in a fixed order."""
    distances = torch.arange(lowest, lowest + by_distance.shape[1], device=by_distance.device)
    buckets = bias.buckets(distances, causal)
    ordered, order = torch.sort(buckets, stable=True)
    bounds = torch.arange(bias.table.shape[1] + 1, device=buckets.device)
    counts = torch.searchsorted(ordered, bounds.to(ordered.dtype)).diff()
    return torch.segment_reduce(by_distance[:, order].t().contiguous(), "sum", lengths=counts, axis=0, unsafe=True).t()


def _row_numbers(saved: _Saved) -> tuple[Tensor, Tensor, Tensor, int]:
    """lse, grad_lse, delta and the stride of their heads."""
    return saved.lse, saved.lse if saved.grad_lse is None else saved.grad_lse, saved.delta, saved.lse.stride(0)


def _backward_flags(arguments: Arguments, saved: _Saved, needs_time: bool) -> dict[str, Any]:
    time = arguments.time_bias
    return {
        "BLOCK_B": 1 if time is None else triton.next_power_of_2(time.table.shape[1]),
        "HAS_TIME_GRAD": needs_time,
        "HAS_GRAD_LSE": saved.grad_lse is not None,
    }

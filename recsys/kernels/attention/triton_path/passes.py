"""The Triton path of `jagged_attention`: allocates and launches; the arithmetic is in the kernels.

A *chunk* is a block of queries, or of keys, of one sequence. The list of all chunks is made on the host once a batch,
long ones first, so that no program is without work and the last ones to run are short.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.bias import LOG2_STEPS, PosBias, TimeBias
from recsys.kernels.attention.dropout import column_state, row_state, threshold
from recsys.kernels.attention.triton_path.bundles import Dropout, Flags, Masks, Rows, Sequences, Terms
from recsys.kernels.attention.triton_path.triton_backward_keys import key_kernel
from recsys.kernels.attention.triton_path.triton_backward_queries import query_kernel
from recsys.kernels.attention.triton_path.triton_backward_short import short_kernel
from recsys.kernels.attention.triton_path.triton_forward import combine_kernel, forward_kernel
from recsys.kernels.attention.triton_path.triton_positions import position_kernel
from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.launch import find_launch, launch_of

OP = "attention"
LONG = 512  # tokens: batches with a longer sequence have launches of their own
SHORT_KEYS = (64, 128, 256)  # sizes of the one-kernel backward pass
SPLIT_PROGRAMS = 264  # fewer programs than two for each processor of an H100 or H200: the keys are split
SPLIT_KEYS = 1024  # a part has at least so many keys
MOST_DOT_D = 64  # numbers of a row of float32 that the gradient of a position bias multiplies at a time
FAR = 1 << 29  # places: beyond every sequence, and still an int32 when places are added to it
COMBINED_ROWS = 16  # a program joins the parts of so many rows
POSITION_SPLITS = 8  # parts of the batch in the gradient of a position bias

Grads = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def triton_forward(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Out (Tq, H, Dv) and lse (Tq, H), a transposed (H, Tq): float32, or float64 for float64; -inf for SiLU."""
    q, k, v = (_unit_stride(x) for x in (q, k, v))
    (total, num_heads, _), wide = q.shape, _wide(q.dtype)
    out = torch.empty(total, num_heads, v.shape[2], dtype=v.dtype, device=v.device)
    lse = torch.empty(num_heads, total, dtype=wide, device=q.device)
    if arguments.silu_norm is not None:
        lse.fill_(-torch.inf)
    if total == 0:
        return out, lse.t()
    launch, flags = _launch("forward", q, v, arguments), _flags(q, v, arguments)
    chunks = chunks_of(arguments.meta_q, launch["BLOCK_M"], arguments.visibility.causal)
    num_splits = _num_splits(len(chunks) * num_heads, arguments.meta_k.max_len)
    outs, lses = out[None], lse[None]
    if num_splits > 1:
        outs = torch.empty(num_splits, *out.shape, dtype=wide, device=out.device)
        lses = torch.empty(num_splits, *lse.shape, dtype=wide, device=out.device)
    forward_kernel[(len(chunks) * num_heads, num_splits)](
        *(Rows.of(x) for x in (q, k, v, outs[0])),
        outs.stride(0),
        lses,
        lses.stride(1),
        lses.stride(0),
        chunks,
        *_bundles(q, arguments),
        num_splits,
        num_heads,
        FLAGS=flags,
        **launch,
    )
    if num_splits > 1:
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
            num_splits,
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
    q, k, v, out, grad_out = (_unit_stride(x) for x in (q, k, v, out, grad_out))
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
    short = _short_launch(q, v, arguments)
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
    launch, num_heads = _launch("backward_queries", q, v, arguments), q.shape[1]
    chunks = chunks_of(arguments.meta_q, launch["BLOCK_M"], arguments.visibility.causal)
    parts = _time_parts(len(chunks), saved, arguments) if needs_time else None
    query_kernel[(len(chunks) * num_heads,)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.out, saved.grad_out, grad_q)),
        *_row_numbers(saved),
        saved.delta if parts is None else parts,
        chunks,
        *_bundles(q, arguments),
        num_heads,
        FLAGS=_flags(q, v, arguments),
        **_backward_flags(arguments, saved, needs_time),
        **launch,
    )
    return parts


def _key_pass(saved: _Saved, grad_k: Tensor, grad_v: Tensor, arguments: Arguments) -> None:
    """Fills grad_k and grad_v."""
    q, v = saved.q, saved.v
    launch, num_heads = _launch("backward_keys", q, v, arguments), q.shape[1]
    chunks = chunks_of(arguments.meta_k, launch["BLOCK_N"], False)
    key_kernel[(len(chunks) * num_heads,)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.grad_out, grad_k, grad_v)),
        saved.lse,
        saved.delta,
        saved.lse.stride(0),
        chunks,
        *_bundles(q, arguments),
        num_heads,
        FLAGS=_flags(q, v, arguments),
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
        *_bundles(q, arguments),
        num_heads,
        FLAGS=_flags(q, v, arguments),
        **_backward_flags(arguments, saved, needs_time),
        **launch,
    )
    return parts


def _position_pass(saved: _Saved, arguments: Arguments, bias: PosBias) -> Tensor:
    """The gradient of the position table."""
    q, v, causal = saved.q, saved.v, arguments.visibility.causal
    launch, num_heads = _launch("backward_positions", q, v, arguments), q.shape[1]
    block, num_sequences = launch["BLOCK"], arguments.meta_q.num_sequences
    looks_ahead = not causal or arguments.num_targets is not None  # within its group a target does, causal or not
    first = -triton.cdiv(arguments.meta_q.max_len, block) if looks_ahead else 0
    diagonals = triton.cdiv(arguments.meta_k.max_len, block) - first
    num_splits = min(POSITION_SPLITS, num_sequences)
    same = torch.empty(num_splits, num_heads, diagonals * block, dtype=saved.lse.dtype, device=q.device)
    before = torch.empty_like(same)
    flags = _flags(q, v, arguments)
    position_kernel[(diagonals * num_heads, num_splits)](
        *(Rows.of(x) for x in (q, saved.k, v, saved.grad_out)),
        saved.lse,
        saved.delta,
        saved.lse.stride(0),
        same,
        before,
        *_bundles(q, arguments),
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
    order = torch.sort(buckets, stable=True).indices
    counts = (buckets[:, None] == torch.arange(bias.table.shape[1], device=buckets.device)).sum(dim=0)
    return torch.segment_reduce(by_distance[:, order].t().contiguous(), "sum", lengths=counts, axis=0, unsafe=True).t()


def chunks_of(meta: JaggedMeta, block: int, causal: bool) -> Tensor:
    """(C, 2) int32: number of the sequence and of the block in it, those with most work first."""
    return meta.cached(("chunks", block, causal), lambda: _make_chunks(meta, block, causal))


def _make_chunks(meta: JaggedMeta, block: int, causal: bool) -> Tensor:
    counts = -(-meta.lengths // block)
    sequences = np.repeat(np.arange(len(counts)), counts)
    blocks = np.arange(len(sequences)) - np.repeat(np.cumsum(counts) - counts, counts)
    work = blocks if causal else counts[sequences]
    order = np.argsort(-work, kind="stable")
    chunks = np.stack([sequences[order], blocks[order]], axis=1).astype(np.int32)
    return torch.from_numpy(chunks).to(meta.offsets.device, non_blocking=True)


def _num_splits(programs: int, longest: int) -> int:
    """Parts of the keys, a power of two, so that the programs fill the processors."""
    splits = 1
    while programs * splits < SPLIT_PROGRAMS and longest >= 2 * splits * SPLIT_KEYS:
        splits *= 2
    return splits


def _row_numbers(saved: _Saved) -> tuple[Tensor, Tensor, Tensor, int]:
    """lse, grad_lse, delta and the stride of their heads."""
    return saved.lse, saved.lse if saved.grad_lse is None else saved.grad_lse, saved.delta, saved.lse.stride(0)


def _bundles(q: Tensor, arguments: Arguments) -> tuple[Any, ...]:
    """From `sequences` to `silu_share`."""
    visibility, targets = arguments.visibility, arguments.num_targets
    offsets = arguments.meta_q.offsets
    return (
        Sequences(
            offsets, arguments.meta_k.offsets, offsets if targets is None else _on_device(targets, arguments.meta_k)
        ),
        _terms(q, arguments),
        Masks(*(min(x, FAR) for x in (*visibility.window, visibility.num_global, visibility.target_group))),
        _signed(row_state(arguments.seed)),
        _signed(column_state(arguments.seed)),
        Dropout(threshold(arguments.dropout_p), 1.0 - arguments.dropout_p),
        arguments.scale,
        1.0 / (arguments.silu_norm or 1.0),
    )


def _on_device(targets: np.ndarray, meta: JaggedMeta) -> Tensor:
    """(B,) int32, copied once a batch."""
    counts = torch.from_numpy(targets.astype(np.int32))
    device = meta.offsets.device
    return meta.cached(("targets", targets.tobytes()), lambda: counts.to(device, non_blocking=True))


def _terms(q: Tensor, arguments: Arguments) -> Terms:
    time, pos, unread = arguments.time_bias, arguments.pos_bias, arguments.meta_q.offsets
    time_table, num_buckets, ts_q, ts_k, thresholds = unread, 1, unread, unread, unread
    if time is not None:
        time_table, num_buckets = time.table.detach().to(_wide(q.dtype)).contiguous(), time.table.shape[1]
        ts_q, ts_k = time.ts_q.contiguous(), time.ts_k.contiguous()
        thresholds = unread if _steps(time) else time.thresholds()
    pos_table, reach = unread, 0
    if pos is not None:
        pos_table, reach = _expanded(pos, arguments.visibility.causal, q), _reach(pos)
    time_h, pos_h = (0 if table.shape[0] == 1 else table.stride(0) for table in (time_table, pos_table))
    return Terms(time_table, time_h, num_buckets, ts_q, ts_k, thresholds, pos_table, pos_h, reach)


def _signed(word: int) -> int:
    """The int32 of the same 32 bits."""
    return word - (word >> 31 << 32)


def _flags(q: Tensor, v: Tensor, arguments: Arguments) -> Flags:
    visibility, time = arguments.visibility, arguments.time_bias
    return Flags(
        D=q.shape[2],
        DV=v.shape[2],
        BLOCK_D=_block(q.shape[2]),
        BLOCK_DV=_block(v.shape[2]),
        CAUSAL=visibility.causal,
        HAS_LEFT=visibility.window[0] >= 0,
        HAS_RIGHT=visibility.window[1] >= 0 and not visibility.causal,
        HAS_GLOBAL=visibility.num_global > 0,
        HAS_TARGETS=arguments.num_targets is not None,
        HAS_TIME=time is not None,
        HAS_POS=arguments.pos_bias is not None,
        HAS_DROPOUT=arguments.dropout_p > 0,
        IS_SILU=arguments.silu_norm is not None,
        STEPS=0 if time is None else _steps(time),
        BISECTIONS=0 if time is None else (time.table.shape[1] - 1).bit_length(),
        ACC=tl.float64 if q.dtype == torch.float64 else tl.float32,
        PRECISION=_precision(q),
    )


def _backward_flags(arguments: Arguments, saved: _Saved, needs_time: bool) -> dict[str, Any]:
    time = arguments.time_bias
    return {
        "BLOCK_B": 1 if time is None else triton.next_power_of_2(time.table.shape[1]),
        "HAS_TIME_GRAD": needs_time,
        "HAS_GRAD_LSE": saved.grad_lse is not None,
    }


def _launch(kernel: str, q: Tensor, v: Tensor, arguments: Arguments) -> Mapping[str, int]:
    is_long = {"is_long": _longest(arguments) > LONG} if kernel == "forward" else {}
    return launch_of(OP, kernel, q.device, **_launch_key(q, v, arguments), **is_long)


def _short_launch(q: Tensor, v: Tensor, arguments: Arguments) -> Mapping[str, int] | None:
    """How the one-kernel backward is launched; None where the sequences are too long or too wide for it."""
    longest = _longest(arguments)
    if longest > SHORT_KEYS[-1]:
        return None
    keys = next(size for size in SHORT_KEYS if size >= longest)
    row = find_launch(OP, "backward_short", q.device, **_launch_key(q, v, arguments), keys=keys)
    return None if row is None else {**row, "BLOCK_N": keys}


def _launch_key(q: Tensor, v: Tensor, arguments: Arguments) -> dict[str, int]:
    return {
        "width": max(_block(q.shape[2]), _block(v.shape[2])),
        "bits": q.element_size() * 8,
        "has_bias": arguments.time_bias is not None or arguments.pos_bias is not None,
    }


def _longest(arguments: Arguments) -> int:
    return max(arguments.meta_q.max_len, arguments.meta_k.max_len)


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _steps(time: TimeBias) -> int:
    """Buckets a doubling; 0 where the buckets are thresholds."""
    return 0 if isinstance(time.buckets, Tensor) else LOG2_STEPS.get(time.buckets, 0)


def _reach(pos: PosBias) -> int:
    return pos.table.shape[1] // 2 if pos.kind == "toeplitz" else pos.max_distance


def _expanded(pos: PosBias, causal: bool, q: Tensor) -> Tensor:
    """(H or 1, 2 * reach + 1): an entry for each distance from -reach to reach."""
    table, reach = pos.table.detach().to(_wide(q.dtype)), _reach(pos)
    if pos.kind == "toeplitz":
        return table.contiguous()
    distances = torch.arange(-reach, reach + 1, device=table.device)
    return table[:, pos.buckets(distances, causal)].contiguous()


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _precision(q: Tensor) -> str:
    """How float32 is multiplied: in three products of TF32, which err about as float32 itself; in one where torch may.

    `torch.set_float32_matmul_precision` says what torch may. Exact products of float32 would not run on tensor cores.
    """
    if q.dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""segment_sum by two kernels: the chunks that lie within one segment, then the segments.

The sorted pairs are cut every CHUNK of them. A chunk whose first and last pair have the same segment is summed by a
program of its own; any other chunk is left to the segments it touches. Each segment then adds its first pairs up to a
cut, the sums of its whole chunks, and the pairs after its last cut: at most 2 CHUNK pairs, however long it is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.launch import launch_of
from recsys.kernels.segment_sum.order import SegmentOrder

MAX_BLOCK_D = 128


def launch_segment_sum(
    x: Tensor, order: SegmentOrder, weights: Tensor | None, scale: float, add_to: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(S, D): the sums of the pairs `order`; of P pairs, p belongs to the row p // (P / R) of `x`."""
    (rows, D), num_pairs, num_segments = x.shape, len(order.pairs), len(order.starts) - 1
    out = torch.empty((num_segments, D), dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    acc = torch.promote_types(x.dtype, torch.float32)
    block = min(MAX_BLOCK_D, max(16, triton.next_power_of_2(D)))
    options = dict(launch_of("segment_sum", "sum", x.device, width=block))
    num_chunks, blocks, K = num_pairs // options["CHUNK"], triton.cdiv(D, block), max(1, num_pairs // max(1, rows))
    partial = torch.empty((num_chunks, D), dtype=acc, device=x.device)
    x = x.contiguous()
    weights = None if weights is None else weights.contiguous()
    add_to = None if add_to is None else add_to.contiguous()
    constants = {
        "HAS_WEIGHTS": weights is not None,
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
        "BLOCK_D": block,
        **options,
    }
    if num_chunks:
        _chunk_sums_kernel[(num_chunks, blocks)](x, weights, order.ids, order.pairs, partial, D, K, **constants)
    _segment_sums_kernel[(num_segments, blocks)](
        x,
        weights,
        order.starts,
        order.pairs,
        partial,
        add_to,
        out,
        D,
        K,
        SCALE=scale,
        HAS_ADD=add_to is not None,
        **constants,
    )
    return out


@triton.jit
def _chunk_sums_kernel(
    x_ptr,
    weights_ptr,
    ids_ptr,
    pairs_ptr,
    partial_ptr,
    D,
    K,
    HAS_WEIGHTS: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = chunk * CHUNK
    first, last = tl.load(ids_ptr + begin), tl.load(ids_ptr + begin + CHUNK - 1)
    if (first == last) & (first >= 0):
        total = tl.zeros([BLOCK_D], dtype=ACC)
        for start in range(0, CHUNK, BLOCK_P):
            total += _sum_pairs(
                x_ptr, weights_ptr, pairs_ptr, begin + start, begin + CHUNK, d, D, K, HAS_WEIGHTS, ACC, BLOCK_P
            )
        tl.store(partial_ptr + chunk * D + d, total, mask=d < D)


@triton.jit
def _segment_sums_kernel(
    x_ptr,
    weights_ptr,
    starts_ptr,
    pairs_ptr,
    partial_ptr,
    add_ptr,
    out_ptr,
    D,
    K,
    SCALE: tl.constexpr,
    HAS_ADD: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    ACC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin, end = tl.load(starts_ptr + segment), tl.load(starts_ptr + segment + 1)
    first_chunk, last_chunk = (begin + CHUNK - 1) // CHUNK, end // CHUNK
    head_end = tl.minimum(first_chunk * CHUNK, end)
    tail_begin = tl.maximum(last_chunk * CHUNK, head_end)
    total = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(begin, head_end, BLOCK_P):
        total += _sum_pairs(x_ptr, weights_ptr, pairs_ptr, start, head_end, d, D, K, HAS_WEIGHTS, ACC, BLOCK_P)
    for start in range(first_chunk, last_chunk, BLOCK_P):
        chunk = start + tl.arange(0, BLOCK_P)
        here = (chunk < last_chunk)[:, None] & (d < D)[None, :]
        total += tl.sum(tl.load(partial_ptr + chunk[:, None] * D + d[None, :], mask=here, other=0.0), axis=0)
    for start in range(tail_begin, end, BLOCK_P):
        total += _sum_pairs(x_ptr, weights_ptr, pairs_ptr, start, end, d, D, K, HAS_WEIGHTS, ACC, BLOCK_P)
    total *= SCALE
    if HAS_ADD:
        total += tl.load(add_ptr + segment * D + d, mask=d < D, other=0.0).to(ACC)
    tl.store(out_ptr + segment * D + d, total, mask=d < D)


@triton.jit
def _sum_pairs(
    x_ptr,
    weights_ptr,
    pairs_ptr,
    start,
    end,
    d,
    D,
    K,
    HAS_WEIGHTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """[BLOCK_D]: the pairs from `start`, BLOCK_P of them at most, none at or behind `end`."""
    p = start + tl.arange(0, BLOCK_P)
    pair = tl.load(pairs_ptr + p, mask=p < end, other=0)
    here = (p < end)[:, None] & (d < D)[None, :]
    rows = tl.load(x_ptr + (pair // K)[:, None] * D + d[None, :], mask=here, other=0.0).to(ACC)
    if HAS_WEIGHTS:
        rows *= tl.load(weights_ptr + pair, mask=p < end, other=0.0).to(ACC)[:, None]
    return tl.sum(rows, axis=0)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Forward kernels of linear_cross_entropy.

    partials   for a block of rows and a range of items: largest logit, sum of powers, and the powers' mean of `w`
    combine    the ranges of a row in their order: loss, slope (its gradient for x), and what the backward kernel reads

The target stands apart from all of it: its logit is a plain sum of products, once a row, so that a row that is sure of
its target has the loss and the slope of the others' share alone. Logits are to the base 2.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["N", "tiles"])
def _partials_kernel(
    x_ptr,  # (N, D), rows that count come first
    w_ptr,  # (V, D)
    bias_ptr,  # (V,)
    target_ptr,  # (N,) int32, -1 for one outside [0, V)
    count_ptr,  # (1,) int32, rows that count
    top_ptr,  # (S, N)
    sum_ptr,  # (S, N)
    acc_ptr,  # (S, N, D)
    stride_w,
    scale,
    N,
    V,
    tiles,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEEDS_SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    count = tl.load(count_ptr)
    first_row = tl.program_id(0) * BLOCK_M
    if first_row >= count:
        return
    split = tl.program_id(1)
    rows = first_row + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_rows, in_d = rows < count, d < D
    at_row = rows.to(tl.int64)[:, None] * D + d[None, :]
    x = tl.load(x_ptr + at_row, mask=in_rows[:, None] & in_d[None, :], other=0.0)
    target = tl.load(target_ptr + rows, mask=in_rows, other=-1)
    top = tl.full((BLOCK_M,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_M,), ACC)
    acc = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    start = split * tiles * BLOCK_N
    for first in range(start, tl.minimum(V, start + tiles * BLOCK_N), BLOCK_N):
        items = first + tl.arange(0, BLOCK_N)
        in_items = items < V
        at_item = items.to(tl.int64)[:, None] * stride_w + d[None, :]
        w = tl.load(w_ptr + at_item, mask=in_items[:, None] & in_d[None, :], other=0.0)  # [BLOCK_N, BLOCK_D]
        offset = tl.zeros((BLOCK_N,), ACC)
        if HAS_BIAS:
            offset = tl.load(bias_ptr + items, mask=in_items, other=0.0).to(ACC) * scale * LOG2_E
        offset = tl.where(in_items, offset, float("-inf"))
        s = tl.dot(x, tl.trans(w), input_precision="ieee", out_dtype=ACC)  # [BLOCK_M, BLOCK_N]
        s = s * (scale * LOG2_E) + offset[None, :]
        s = tl.where(items[None, :] == target[:, None], float("-inf"), s)
        highest = tl.maximum(top, tl.max(s, 1))
        pivot = tl.where(highest == float("-inf"), 0.0, highest)
        shrink = tl.exp2(top - pivot)
        e = tl.exp2(s - pivot[:, None])
        total = total * shrink + tl.sum(e, 1)
        if NEEDS_SLOPE:
            acc = tl.dot(e.to(w.dtype), w, acc * shrink[:, None], input_precision="ieee", out_dtype=ACC)
        top = highest
    at_split = split.to(tl.int64) * N
    tl.store(top_ptr + at_split + rows, top, mask=in_rows)
    tl.store(sum_ptr + at_split + rows, total, mask=in_rows)
    if NEEDS_SLOPE:
        tl.store(acc_ptr + at_split * D + at_row, acc, mask=in_rows[:, None] & in_d[None, :])


@triton.jit(do_not_specialize=["N", "splits"], do_not_specialize_on_alignment=["lse_ptr", "hit_ptr"])
def _combine_kernel(
    x_ptr,  # (N, D), as the caller gave them
    w_ptr,  # (V, D)
    bias_ptr,  # (V,)
    target_ptr,  # (N,) int64
    order_ptr,  # (N,) int64, rows that count come first
    count_ptr,  # (1,) int32
    mean_w_ptr,  # (D,)
    mean_bias_ptr,  # (1,)
    top_ptr,  # (S, N)
    sum_ptr,  # (S, N)
    acc_ptr,  # (S, N, D)
    losses_ptr,  # (N,)
    slope_ptr,  # (N, D)
    lse_ptr,  # (N,), in `order`
    hit_ptr,  # (N,), in `order`
    stride_x,
    stride_w,
    scale,
    smoothing,
    N,
    V,
    splits,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    NEEDS_SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    counted = i < tl.load(count_ptr)
    row = tl.load(order_ptr + i, mask=i < N, other=0)
    target = tl.load(target_ptr + row, mask=counted, other=0)
    is_item = (target >= 0) & (target < V)
    reads = (counted & is_item)[:, None] & in_d[None, :]
    x = tl.load(x_ptr + row[:, None] * stride_x + d[None, :], mask=counted[:, None] & in_d[None, :], other=0.0).to(ACC)
    hit_w = tl.load(w_ptr + target[:, None] * stride_w + d[None, :], mask=reads, other=0.0).to(ACC)
    logit = tl.sum(x * hit_w, 1)
    if HAS_BIAS:
        logit += tl.load(bias_ptr + target, mask=counted & is_item, other=0.0).to(ACC)
    # A target outside [0, V) is nobody's: NaN says so without a wait of the host.
    logit = tl.where(is_item, logit * scale, float("nan"))
    own_top = logit * LOG2_E

    top, rest = own_top, tl.zeros((BLOCK_M,), ACC)
    acc = tl.zeros((BLOCK_M, BLOCK_D), ACC)
    at = i.to(tl.int64)
    for _ in range(splits):
        part_top = tl.load(top_ptr + at, mask=counted, other=float("-inf"))
        highest = tl.maximum(top, part_top)
        shrink, share = tl.exp2(top - highest), tl.exp2(part_top - highest)
        rest = rest * shrink + tl.load(sum_ptr + at, mask=counted, other=0.0) * share
        if NEEDS_SLOPE:
            at_part = at[:, None] * D + d[None, :]
            part = tl.load(acc_ptr + at_part, mask=counted[:, None] & in_d[None, :], other=0.0)
            acc = acc * shrink[:, None] + part * share[:, None]
        top = highest
        at += N
    z = rest + tl.exp2(own_top - top)
    miss = rest / z  # 1 - the target's probability
    loss = (top - own_top + tl.log2(z)) * LN_2
    if HAS_SMOOTHING:
        mean_w = tl.load(mean_w_ptr + d, mask=in_d, other=0.0)
        mean = tl.sum(x * mean_w[None, :], 1)
        if HAS_BIAS:
            mean += tl.load(mean_bias_ptr)
        loss += smoothing * (logit - mean * scale)
    tl.store(losses_ptr + row, tl.where(counted, loss, 0.0), mask=i < N)
    tl.store(lse_ptr + i, tl.where(counted, top + tl.log2(z), 0.0), mask=i < N)
    tl.store(hit_ptr + i, tl.where(counted, smoothing - miss, 0.0), mask=i < N)
    if NEEDS_SLOPE:
        slope = acc / z[:, None] + (smoothing - miss)[:, None] * hit_w
        if HAS_SMOOTHING:
            slope -= smoothing * mean_w[None, :]
        slope = tl.where(counted[:, None], slope * scale, 0.0)
        tl.store(slope_ptr + row[:, None] * D + d[None, :], slope, mask=(i < N)[:, None] & in_d[None, :])

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradient of a position bias: sums of dscore along diagonals, without atomics.

A program owns one diagonal of square tiles, a head and a part of the sequences. It works dscore out again, tile by
tile, shifts each row so that equal distances stand in one column, and adds the columns up. A tile holds distances of
two blocks, so there are two results: for distance `block * BLOCK + c` and for the block before it.
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_scores import (
    LOG2_E,
    bucket_range,
    dropout_hash,
    gap_of,
    is_kept,
    load_each,
    load_lse,
    pos_bias,
    silu_slope,
    time_bias,
)
from recsys.kernels.attention.triton_path.triton_spans import sees


@triton.jit(
    do_not_specialize=[
        "row_state",
        "column_state",
        "threshold",
        "lse_h",
        "delta_h",
        "num_sequences",
        "first_diagonal",
        "num_diagonals",
    ]
)
def position_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    lse_ptr,
    delta_ptr,
    grad_out_ptr,
    same_ptr,
    before_ptr,
    offsets_q_ptr,
    offsets_k_ptr,
    num_targets_ptr,
    time_table_ptr,
    ts_q_ptr,
    ts_k_ptr,
    thresholds_ptr,
    pos_table_ptr,
    q_t,
    q_h,
    k_t,
    k_h,
    v_t,
    v_h,
    grad_out_t,
    grad_out_h,
    lse_h,
    delta_h,
    time_h,
    pos_h,
    scale,
    silu_share,
    left,
    right,
    num_global,
    target_group,
    num_buckets,
    reach,
    row_state,
    column_state,
    threshold,
    kept_share,
    num_heads,
    num_sequences,
    first_diagonal,
    num_diagonals,
    num_splits,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    DOT_D: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BISECTIONS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes same and before (num_splits, num_heads, num_diagonals * BLOCK)."""
    number, head, split = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads, tl.program_id(1)
    diagonal = first_diagonal + number
    h = head.to(tl.int64)
    if HAS_TIME:
        time_table_ptr += h * time_h
    pos_table_ptr += h * pos_h
    r = tl.arange(0, BLOCK)
    to_column = ((r[:, None] - r[None, :]) + BLOCK) % BLOCK  # the key of row i whose distance is c, modulo BLOCK
    is_same = r[:, None] >= r[None, :]
    same, before = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    for sequence in range(num_sequences * split // num_splits, num_sequences * (split + 1) // num_splits):
        start_q, start_k = tl.load(offsets_q_ptr + sequence), tl.load(offsets_k_ptr + sequence)
        num_queries = (tl.load(offsets_q_ptr + sequence + 1) - start_q).to(tl.int32)
        num_keys = (tl.load(offsets_k_ptr + sequence + 1) - start_k).to(tl.int32)
        shift = num_keys - num_queries
        first_target = num_keys
        if HAS_TARGETS:
            first_target -= tl.load(num_targets_ptr + sequence)
        before_zero = -tl.cdiv(tl.maximum(-shift, 0), BLOCK)
        first_query_block = tl.where(shift < 0, before_zero, tl.maximum(shift, 0) // BLOCK)
        first_block = tl.maximum(0, first_query_block - diagonal)
        last_block = tl.cdiv(num_keys, BLOCK) - tl.maximum(0, diagonal)
        for block in range(first_block, last_block):
            n = block * BLOCK + r
            place = (block + diagonal) * BLOCK + r
            m = place - shift
            in_n, in_m = n < num_keys, (m >= 0) & (m < num_queries)
            q_rows, k_rows = q_ptr + start_q * q_t + h * q_h, k_ptr + start_k * k_t + h * k_h
            scores = _product(q_rows, m, in_m, q_t, k_rows, n, in_n, k_t, D, BLOCK, BLOCK_D, DOT_D, ACC, PRECISION)
            scores = scores * scale
            if HAS_TIME:
                ts_m = load_each(ts_q_ptr + start_q, m, in_m, 0, True)
                ts_n = load_each(ts_k_ptr + start_k, n, in_n, 0, True)
                least, most = bucket_range(ts_m, ts_n, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
                gap = gap_of(ts_m[:, None], ts_n[None, :])
                scores += time_bias(gap, least, most, time_table_ptr, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
            scores += pos_bias(place[:, None] - n[None, :], pos_table_ptr, reach)
            grad_rows, v_rows = grad_out_ptr + start_q * grad_out_t + h * grad_out_h, v_ptr + start_k * v_t + h * v_h
            grad_weights = _product(
                grad_rows, m, in_m, grad_out_t, v_rows, n, in_n, v_t, DV, BLOCK, BLOCK_DV, DOT_D, ACC, PRECISION
            )
            seen = (in_m[:, None] & in_n[None, :]) & sees(
                place[:, None],
                n[None, :],
                first_target,
                left,
                right,
                num_global,
                target_group,
                CAUSAL,
                HAS_LEFT,
                HAS_RIGHT,
                HAS_GLOBAL,
                HAS_TARGETS,
            )
            if IS_SILU:
                grad_scores = tl.where(seen, silu_slope(scores) * grad_weights * silu_share, 0.0)
            else:
                lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True)
                delta = load_each(delta_ptr + h * delta_h + start_q, m, in_m, 0.0, True)
                weights = tl.exp2((tl.where(seen, scores, float("-inf")) - lse[:, None]) * LOG2_E)
                if HAS_DROPOUT:
                    rows = dropout_hash(row_state, sequence, m, head)
                    columns = dropout_hash(column_state, sequence, n, head)
                    kept = is_kept(rows[:, None], columns[None, :], threshold)
                    grad_weights = tl.where(kept, grad_weights / kept_share, 0.0)
                grad_scores = weights * (grad_weights - delta[:, None])
            by_column = tl.gather(grad_scores, to_column, 1)
            same += tl.sum(tl.where(is_same, by_column, 0.0), 0)
            before += tl.sum(tl.where(is_same, 0.0, by_column), 0)
    at = (split.to(tl.int64) * num_heads + h) * num_diagonals * BLOCK + number * BLOCK + r
    tl.store(same_ptr + at, same)
    tl.store(before_ptr + at, before)


@triton.jit
def _product(
    a_ptr,
    a_rows,
    in_a,
    a_t,
    b_ptr,
    b_rows,
    in_b,
    b_t,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_D: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK, BLOCK) products of rows, DOT_D of their numbers at a time: whole rows of float32 would fill registers."""
    product = tl.zeros([BLOCK, BLOCK], ACC)
    for start in range(0, BLOCK_D, DOT_D):
        d = start + tl.arange(0, DOT_D)
        in_d = d < WIDTH
        a = tl.load(
            a_ptr + a_rows.to(tl.int64)[:, None] * a_t + d[None, :], mask=in_a[:, None] & in_d[None, :], other=0.0
        )
        b = tl.load(
            b_ptr + b_rows.to(tl.int64)[:, None] * b_t + d[None, :], mask=in_b[:, None] & in_d[None, :], other=0.0
        )
        product += tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=ACC)
    return product

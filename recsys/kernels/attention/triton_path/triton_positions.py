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
    rows_of,
    silu_slope,
    time_bias,
)
from recsys.kernels.attention.triton_path.triton_spans import sees, sequence_at


@triton.jit(
    do_not_specialize=[
        "lse_h",
        "row_state",
        "column_state",
        "num_sequences",
        "first_diagonal",
        "num_diagonals",
        "num_splits",
    ]
)
def position_kernel(
    q,
    k,
    v,
    grad_out,
    lse_ptr,
    delta_ptr,
    lse_h,
    same_ptr,
    before_ptr,
    sequences,
    terms,
    masks,
    row_state,
    column_state,
    dropout,
    scale,
    silu_share,
    num_heads,
    num_sequences,
    first_diagonal,
    num_diagonals,
    num_splits,
    FLAGS: tl.constexpr,
    DOT_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes same and before (num_splits, num_heads, num_diagonals * BLOCK)."""
    states = (row_state, column_state)
    number, split = tl.program_id(0) // num_heads, tl.program_id(1)
    h = (tl.program_id(0) % num_heads).to(tl.int64)
    diagonal = first_diagonal + number
    r = tl.arange(0, BLOCK)
    to_column = ((r[:, None] - r[None, :]) + BLOCK) % BLOCK  # the key of row i whose distance is c, modulo BLOCK
    is_same = r[:, None] >= r[None, :]
    same, before = tl.zeros([BLOCK], FLAGS.ACC), tl.zeros([BLOCK], FLAGS.ACC)
    for sequence in range(num_sequences * split // num_splits, num_sequences * (split + 1) // num_splits):
        start_q, start_k, num_queries, num_keys, first_target = sequence_at(sequence, sequences, FLAGS)
        shift = num_keys - num_queries
        before_zero = -tl.cdiv(tl.maximum(-shift, 0), BLOCK)
        first_query_block = tl.where(shift < 0, before_zero, tl.maximum(shift, 0) // BLOCK)
        first_block = tl.maximum(0, first_query_block - diagonal)
        last_block = tl.cdiv(num_keys, BLOCK) - tl.maximum(0, diagonal)
        for block in range(first_block, last_block):
            n, place = block * BLOCK + r, (block + diagonal) * BLOCK + r
            m = place - shift
            in_n, in_m = n < num_keys, (m >= 0) & (m < num_queries)
            scores = _product(
                rows_of(q, start_q, h), m, in_m, q.t, rows_of(k, start_k, h), n, in_n, k.t,
                FLAGS.D, FLAGS.BLOCK_D, BLOCK, DOT_D, FLAGS,
            )  # fmt: skip
            scores = scores * scale + pos_bias(place[:, None] - n[None, :], terms, h)
            if FLAGS.HAS_TIME:
                ts_m = load_each(terms.ts_q + start_q, m, in_m, 0, True)
                ts_n = load_each(terms.ts_k + start_k, n, in_n, 0, True)
                least, most = bucket_range(ts_m, ts_n, terms, FLAGS)
                scores += time_bias(gap_of(ts_m[:, None], ts_n[None, :]), least, most, terms, h, FLAGS)
            grad_weights = _product(
                rows_of(grad_out, start_q, h), m, in_m, grad_out.t, rows_of(v, start_k, h), n, in_n, v.t,
                FLAGS.DV, FLAGS.BLOCK_DV, BLOCK, DOT_D, FLAGS,
            )  # fmt: skip
            seen = in_m[:, None] & in_n[None, :]
            seen = seen & sees(place[:, None], n[None, :], first_target, masks, FLAGS)
            if FLAGS.IS_SILU:
                grad_scores = tl.where(seen, silu_slope(scores) * grad_weights * silu_share, 0.0)
            else:
                lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True)
                delta = load_each(delta_ptr + h * lse_h + start_q, m, in_m, 0.0, True)
                weights = tl.exp2((tl.where(seen, scores, float("-inf")) - lse[:, None]) * LOG2_E)
                if FLAGS.HAS_DROPOUT:
                    rows = dropout_hash(states[0], sequence, m, h)
                    columns = dropout_hash(states[1], sequence, n, h)
                    kept = is_kept(rows[:, None], columns[None, :], dropout.threshold)
                    grad_weights = tl.where(kept, grad_weights / dropout.kept_share, 0.0)
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
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
    DOT_D: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """(BLOCK, BLOCK) products of rows, DOT_D of their numbers at a time: whole rows of float32 would fill registers."""
    product = tl.zeros([BLOCK, BLOCK], FLAGS.ACC)
    for start in range(0, BLOCK_D, DOT_D):
        d = start + tl.arange(0, DOT_D)
        at_a, in_d = a_ptr + a_rows.to(tl.int64)[:, None] * a_t + d[None, :], (d < WIDTH)[None, :]
        at_b = b_ptr + b_rows.to(tl.int64)[:, None] * b_t + d[None, :]
        a = tl.load(at_a, mask=in_a[:, None] & in_d, other=0.0)
        b = tl.load(at_b, mask=in_b[:, None] & in_d, other=0.0)
        product += tl.dot(a, tl.trans(b), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    return product

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""All gradients of short sequences in one kernel: a program for each sequence and head holds all of its keys.

q, k, v and dout are read once and five products suffice, where two kernels need seven: dk and dv stay in registers
while the queries go by, and dq^T = k^T dscore^T is whole for each block of them. Formulas:
`triton_backward_queries.py`.
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_gradients import add_to_buckets, transposed_gradients
from recsys.kernels.attention.triton_path.triton_scores import (
    bucket_range,
    dropout_hash,
    gap_of,
    load_each,
    load_lse,
    load_rows,
    rows_of,
    store_rows,
)
from recsys.kernels.attention.triton_path.triton_spans import sees, sequence_at


@triton.jit(do_not_specialize=["lse_h", "row_state", "column_state"])
def short_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    grad_q,
    grad_k,
    grad_v,
    lse_ptr,
    grad_lse_ptr,
    delta_ptr,
    lse_h,
    grad_time_ptr,
    sequences,
    terms,
    masks,
    row_state,
    column_state,
    dropout,
    scale,
    silu_share,
    num_heads,
    FLAGS: tl.constexpr,
    HAS_TIME_GRAD: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes dq, dk, dv, delta (num_heads, Tq) and a row of grad_time; no sequence has over BLOCK_N keys."""
    states = (row_state, column_state)
    sequence = tl.program_id(0) // num_heads
    h = (tl.program_id(0) % num_heads).to(tl.int64)
    start_q, start_k, num_queries, num_keys, first_target = sequence_at(sequence, sequences, FLAGS)
    shift = num_keys - num_queries
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, FLAGS.BLOCK_D)
    in_n = n < num_keys
    k_tile = load_rows(rows_of(k, start_k, h), n, in_n, k.t, FLAGS.D, FLAGS.BLOCK_D, True)
    v_tile = load_rows(rows_of(v, start_k, h), n, in_n, v.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
    ts_n, columns = n, n
    if FLAGS.HAS_TIME:
        ts_n = load_each(terms.ts_k + start_k, n, in_n, 0, True)
    if FLAGS.HAS_DROPOUT:
        columns = dropout_hash(states[1], sequence, n, h)

    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dk = tl.zeros([BLOCK_N, BLOCK_D], FLAGS.ACC)
    BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
    dv = tl.zeros([BLOCK_N, BLOCK_DV], FLAGS.ACC)
    grad_time = tl.zeros([BLOCK_B], FLAGS.ACC)
    for start in range(0, num_queries, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < num_queries
        q_tile = load_rows(rows_of(q, start_q, h), m, in_m, q.t, FLAGS.D, FLAGS.BLOCK_D, True)
        do_tile = load_rows(rows_of(grad_out, start_q, h), m, in_m, grad_out.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
        lse, delta, ts_m, rows = m, m, m, m
        if not FLAGS.IS_SILU:
            out_tile = load_rows(rows_of(out, start_q, h), m, in_m, out.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
            delta = tl.sum(out_tile.to(FLAGS.ACC) * do_tile.to(FLAGS.ACC), 1)
            if HAS_GRAD_LSE:
                delta -= load_each(grad_lse_ptr + h * lse_h + start_q, m, in_m, 0.0, True)
            lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True)
            delta = tl.where(lse == float("inf"), 0.0, delta)  # who sees no key passes nothing on
            tl.store(delta_ptr + h * lse_h + start_q + m, delta, mask=in_m)
        if FLAGS.HAS_TIME:
            ts_m = load_each(terms.ts_q + start_q, m, in_m, 0, True)
        if FLAGS.HAS_DROPOUT:
            rows = dropout_hash(states[0], sequence, m, h)
        place = (m + shift)[None, :]
        seen = in_n[:, None] & in_m[None, :]
        seen = seen & sees(place, n[:, None], first_target, masks, FLAGS)
        kept_weights, grad_scores = transposed_gradients(
            k_tile, v_tile, q_tile, do_tile, lse, delta, ts_m, ts_n, rows, columns, seen, place - n[:, None],
            h, terms, dropout, scale, silu_share, True, FLAGS,
        )  # fmt: skip
        dv += tl.dot(kept_weights.to(do_tile.dtype), do_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
        narrow = grad_scores.to(q_tile.dtype)
        dk += tl.dot(narrow, q_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
        dq = tl.dot(tl.trans(k_tile), narrow, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)  # transposed
        at = rows_of(grad_q, start_q, h) + m.to(tl.int64)[None, :] * grad_q.t + d[:, None]
        tl.store(at, (dq * scale).to(grad_q.ptr.dtype.element_ty), mask=in_m[None, :] & (d < FLAGS.D)[:, None])
        if HAS_TIME_GRAD:
            least, most = bucket_range(ts_m, ts_n, terms, FLAGS)
            gap = gap_of(ts_m[None, :], ts_n[:, None])
            grad_time = add_to_buckets(grad_time, grad_scores, gap, least, most, terms, BLOCK_B, FLAGS)
    store_rows(rows_of(grad_k, start_k, h), dk * scale, n, in_n, grad_k.t, FLAGS.D, FLAGS.BLOCK_D)
    store_rows(rows_of(grad_v, start_k, h), dv, n, in_n, grad_v.t, FLAGS.DV, FLAGS.BLOCK_DV)
    if HAS_TIME_GRAD:
        b = tl.arange(0, BLOCK_B)
        row = tl.program_id(0).to(tl.int64) * terms.num_buckets
        tl.store(grad_time_ptr + row + b, grad_time, mask=b < terms.num_buckets)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradients of the queries and of the time table: a program for each block of queries, without atomics.

    weight = exp(score - lse)            dscore = weight (kept / (1 - p) <dout, v> - delta),  delta = <dout, out> - dlse
    weight = silu(score) / norm          dscore = silu'(score) / norm <dout, v>
    dq = scale dscore k     dk = scale dscore^T q     dv = weight^T dout     dtable[b] = sum of dscore in bucket b

Every number is summed in one fixed order: dq and a row of the time table's gradient lie in registers, and
`triton_backward_keys.py` works the scores out a second time for dk and dv.

Paper: Dao 2023, arXiv:2307.08691; there dq is summed by atomics, here a second pass takes their place.
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_gradients import add_to_buckets
from recsys.kernels.attention.triton_path.triton_scores import (
    LOG2_E,
    bucket_range,
    dropout_hash,
    gap_of,
    is_kept,
    load_each,
    load_lse,
    load_rows,
    pos_bias,
    rows_of,
    silu_slope,
    store_rows,
    time_bias,
)
from recsys.kernels.attention.triton_path.triton_spans import (
    chunk_at,
    edge,
    key_spans,
    num_edges,
    num_inner,
    sees,
    sequence_at,
)


@triton.jit(do_not_specialize=["lse_h", "row_state", "column_state"])
def query_kernel(
    q,
    k,
    v,
    out,
    grad_out,
    grad_q,
    lse_ptr,
    grad_lse_ptr,
    delta_ptr,
    lse_h,
    grad_time_ptr,
    chunks_ptr,
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
    """Writes dq, delta (num_heads, Tq) and the chunk's row of grad_time (chunks, num_heads, num_buckets)."""
    states = (row_state, column_state)
    sequence, start_m, h = chunk_at(tl.program_id(0), chunks_ptr, num_heads, BLOCK_M)
    start_q, start_k, num_queries, num_keys, first_target = sequence_at(sequence, sequences, FLAGS)

    m = start_m + tl.arange(0, BLOCK_M)
    in_m = m < num_queries
    place = m + num_keys - num_queries
    q_tile = load_rows(rows_of(q, start_q, h), m, in_m, q.t, FLAGS.D, FLAGS.BLOCK_D, True)
    do_tile = load_rows(rows_of(grad_out, start_q, h), m, in_m, grad_out.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
    lse = tl.zeros([BLOCK_M], FLAGS.ACC)
    delta = tl.zeros([BLOCK_M], FLAGS.ACC)
    if not FLAGS.IS_SILU:
        out_tile = load_rows(rows_of(out, start_q, h), m, in_m, out.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
        delta = tl.sum(out_tile.to(FLAGS.ACC) * do_tile.to(FLAGS.ACC), 1)
        if HAS_GRAD_LSE:
            grad_lse = load_each(grad_lse_ptr + h * lse_h + start_q, m, in_m, 0.0, True)
            delta -= grad_lse
        lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True) * LOG2_E
        delta = tl.where(lse == float("inf"), 0.0, delta)  # who sees no key passes nothing on, whatever it is given
        tl.store(delta_ptr + h * lse_h + start_q + m, delta, mask=in_m)
    ts_m, rows = m, m
    if FLAGS.HAS_TIME:
        ts_m = load_each(terms.ts_q + start_q, m, in_m, 0, True)
    if FLAGS.HAS_DROPOUT:
        rows = dropout_hash(states[0], sequence, m, h)
    first_place = start_m + num_keys - num_queries
    last_place = tl.minimum(first_place + BLOCK_M, num_keys) - 1
    spans = key_spans(first_place, last_place, num_keys, first_target, masks, BLOCK_N, FLAGS)

    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dq = tl.zeros([BLOCK_M, BLOCK_D], FLAGS.ACC)
    grad_time = tl.zeros([BLOCK_B], FLAGS.ACC)
    for t in range(0, num_edges(spans, BLOCK_N)):
        start, end = edge(t, spans, BLOCK_N)
        n = start + tl.arange(0, BLOCK_N)
        in_n = n < end
        seen = in_m[:, None] & in_n[None, :]
        seen = seen & sees(place[:, None], n[None, :], first_target, masks, FLAGS)
        dq, grad_time = _add_keys(
            dq, grad_time, q_tile, do_tile, lse, delta, k, v, n, in_n, seen, place, ts_m, rows,
            sequence, start_k, h, terms, states, dropout, scale, silu_share, True, HAS_TIME_GRAD, BLOCK_B, FLAGS,
        )  # fmt: skip
    for t in range(0, num_inner(spans, BLOCK_N)):
        n = spans[3] + t * BLOCK_N + tl.arange(0, BLOCK_N)
        dq, grad_time = _add_keys(
            dq, grad_time, q_tile, do_tile, lse, delta, k, v, n, n >= 0, in_m[:, None], place, ts_m, rows,
            sequence, start_k, h, terms, states, dropout, scale, silu_share, False, HAS_TIME_GRAD, BLOCK_B, FLAGS,
        )  # fmt: skip
    store_rows(rows_of(grad_q, start_q, h), dq * scale, m, in_m, grad_q.t, FLAGS.D, FLAGS.BLOCK_D)
    if HAS_TIME_GRAD:
        b = tl.arange(0, BLOCK_B)
        row = tl.program_id(0).to(tl.int64) * terms.num_buckets
        tl.store(grad_time_ptr + row + b, grad_time, mask=b < terms.num_buckets)


@triton.jit
def _add_keys(
    dq,
    grad_time,
    q_tile,
    do_tile,
    lse,
    delta,
    k,
    v,
    n,
    in_n,
    seen,
    place,
    ts_m,
    rows,
    sequence,
    start_k,
    h,
    terms,
    states,
    dropout,
    scale,
    silu_share,
    MASKED: tl.constexpr,
    HAS_TIME_GRAD: tl.constexpr,
    BLOCK_B: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """dq and grad_time with one more block of keys."""
    k_tile = load_rows(rows_of(k, start_k, h), n, in_n, k.t, FLAGS.D, FLAGS.BLOCK_D, MASKED)
    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC) * scale
    gap, least, most = place[:, None], 0, 0
    if FLAGS.HAS_TIME:
        ts_n = load_each(terms.ts_k + start_k, n, in_n, 0, MASKED)
        least, most = bucket_range(ts_m, ts_n, terms, FLAGS)
        gap = gap_of(ts_m[:, None], ts_n[None, :])
        scores += time_bias(gap, least, most, terms, h, FLAGS)
    if FLAGS.HAS_POS:
        scores += pos_bias(place[:, None] - n[None, :], terms, h)
    v_tile = load_rows(rows_of(v, start_k, h), n, in_n, v.t, FLAGS.DV, FLAGS.BLOCK_DV, MASKED)
    grad_weights = tl.dot(do_tile, tl.trans(v_tile), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    if FLAGS.IS_SILU:
        grad_scores = silu_slope(scores) * grad_weights * silu_share
        if MASKED or HAS_TIME_GRAD:
            grad_scores = tl.where(seen, grad_scores, 0.0)
    else:
        if MASKED:
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.exp2(scores * LOG2_E - lse[:, None])
        if FLAGS.HAS_DROPOUT:
            columns = dropout_hash(states[1], sequence, n, h)
            kept = is_kept(rows[:, None], columns[None, :], dropout.threshold)
            grad_weights = tl.where(kept, grad_weights / dropout.kept_share, 0.0)
        grad_scores = weights * (grad_weights - delta[:, None])
    if HAS_TIME_GRAD:
        grad_time = add_to_buckets(grad_time, grad_scores, gap, least, most, terms, BLOCK_B, FLAGS)
    dq += tl.dot(grad_scores.to(k_tile.dtype), k_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    return dq, grad_time

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradients of keys and values: a program for each block of keys, which goes over the queries that see it.

It forms the transposed scores k q^T at once: only tiles that were loaded are transposed, never the result of a product
(Triton before 3.7.1 miscompiles that on Hopper at a width of 64). Formulas: `triton_backward_queries.py`.
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_gradients import transposed_gradients
from recsys.kernels.attention.triton_path.triton_scores import (
    dropout_hash,
    load_each,
    load_lse,
    load_rows,
    rows_of,
    store_rows,
)
from recsys.kernels.attention.triton_path.triton_spans import (
    chunk_at,
    edge,
    num_edges,
    num_inner,
    query_spans,
    sees,
    sequence_at,
)


@triton.jit(do_not_specialize=["lse_h", "row_state", "column_state"])
def key_kernel(
    q,
    k,
    v,
    grad_out,
    grad_k,
    grad_v,
    lse_ptr,
    delta_ptr,
    lse_h,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes dk and dv of one block of keys; `chunks` counts in blocks of BLOCK_N keys."""
    states = (row_state, column_state)
    sequence, start_n, h = chunk_at(tl.program_id(0), chunks_ptr, num_heads, BLOCK_N)
    start_q, start_k, num_queries, num_keys, first_target = sequence_at(sequence, sequences, FLAGS)
    shift = num_keys - num_queries

    n = start_n + tl.arange(0, BLOCK_N)
    in_n = n < num_keys
    k_tile = load_rows(rows_of(k, start_k, h), n, in_n, k.t, FLAGS.D, FLAGS.BLOCK_D, True)
    v_tile = load_rows(rows_of(v, start_k, h), n, in_n, v.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
    ts_n, columns = n, n
    if FLAGS.HAS_TIME:
        ts_n = load_each(terms.ts_k + start_k, n, in_n, 0, True)
    if FLAGS.HAS_DROPOUT:
        columns = dropout_hash(states[1], sequence, n, h)
    last_key = tl.minimum(start_n + BLOCK_N, num_keys) - 1
    spans = query_spans(start_n, last_key, num_queries, num_keys, first_target, masks, BLOCK_M, FLAGS)

    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dk = tl.zeros([BLOCK_N, BLOCK_D], FLAGS.ACC)
    BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
    dv = tl.zeros([BLOCK_N, BLOCK_DV], FLAGS.ACC)
    for t in range(0, num_edges(spans, BLOCK_M)):
        start, end = edge(t, spans, BLOCK_M)
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < end
        seen = in_m[None, :] & sees((m + shift)[None, :], n[:, None], first_target, masks, FLAGS)
        dk, dv = _add_queries(
            dk, dv, k_tile, v_tile, q, grad_out, lse_ptr, delta_ptr, lse_h, m, in_m, seen, n, ts_n, columns, shift,
            sequence, start_q, h, terms, states, dropout, scale, silu_share, True, FLAGS,
        )  # fmt: skip
    for t in range(0, num_inner(spans, BLOCK_M)):
        m = spans[3] + t * BLOCK_M + tl.arange(0, BLOCK_M)
        in_m = m >= 0
        dk, dv = _add_queries(
            dk, dv, k_tile, v_tile, q, grad_out, lse_ptr, delta_ptr, lse_h, m, in_m, in_m[None, :], n, ts_n, columns,
            shift, sequence, start_q, h, terms, states, dropout, scale, silu_share, False, FLAGS,
        )  # fmt: skip
    store_rows(rows_of(grad_k, start_k, h), dk * scale, n, in_n, grad_k.t, FLAGS.D, FLAGS.BLOCK_D)
    store_rows(rows_of(grad_v, start_k, h), dv, n, in_n, grad_v.t, FLAGS.DV, FLAGS.BLOCK_DV)


@triton.jit
def _add_queries(
    dk,
    dv,
    k_tile,
    v_tile,
    q,
    grad_out,
    lse_ptr,
    delta_ptr,
    lse_h,
    m,
    in_m,
    seen,
    n,
    ts_n,
    columns,
    shift,
    sequence,
    start_q,
    h,
    terms,
    states,
    dropout,
    scale,
    silu_share,
    MASKED: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """dk and dv with one more block of queries; tiles of scores are (BLOCK_N, BLOCK_M)."""
    q_tile = load_rows(rows_of(q, start_q, h), m, in_m, q.t, FLAGS.D, FLAGS.BLOCK_D, MASKED)
    do_tile = load_rows(rows_of(grad_out, start_q, h), m, in_m, grad_out.t, FLAGS.DV, FLAGS.BLOCK_DV, MASKED)
    lse, delta, ts_m, rows = m, m, m, m
    if FLAGS.HAS_TIME:
        ts_m = load_each(terms.ts_q + start_q, m, in_m, 0, MASKED)
    if FLAGS.HAS_DROPOUT:
        rows = dropout_hash(states[0], sequence, m, h)
    if not FLAGS.IS_SILU:
        lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, MASKED)
        delta = load_each(delta_ptr + h * lse_h + start_q, m, in_m, 0.0, MASKED)
    distance = (m + shift)[None, :] - n[:, None]
    kept_weights, grad_scores = transposed_gradients(
        k_tile, v_tile, q_tile, do_tile, lse, delta, ts_m, ts_n, rows, columns, seen, distance,
        h, terms, dropout, scale, silu_share, MASKED, FLAGS,
    )  # fmt: skip
    dv += tl.dot(kept_weights.to(do_tile.dtype), do_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    dk += tl.dot(grad_scores.to(q_tile.dtype), q_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    return dk, dv

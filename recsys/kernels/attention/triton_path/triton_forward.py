# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The forward pass of `jagged_attention`: a program for each block of queries, head and part of the keys.

Softmax runs over the key blocks with a running maximum and sum, to the base 2; sums are float32 (float64 for float64).
With `num_splits` > 1 each program takes a part of the key blocks and `combine_kernel` joins the parts in their order:
for a few targets against a long history there would be too few programs otherwise.

Papers: Dao et al. 2022, arXiv:2205.14135 (running softmax); Zhai et al. 2024, arXiv:2402.17152 (SiLU).
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_scores import (
    LN_2,
    LOG2_E,
    bucket_range,
    dropout_hash,
    gap_of,
    is_kept,
    load_each,
    load_rows,
    pos_bias,
    rows_of,
    silu,
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


@triton.jit(do_not_specialize=["lse_h", "lse_s", "out_s", "row_state", "column_state", "num_splits"])
def forward_kernel(
    q,
    k,
    v,
    out,
    out_s,
    lse_ptr,
    lse_h,
    lse_s,
    chunks_ptr,
    sequences,
    terms,
    masks,
    row_state,
    column_state,
    dropout,
    scale,
    silu_share,
    num_splits,
    num_heads,
    FLAGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Writes out and, for softmax, lse of a block of queries, a head and a part of the keys."""
    states = (row_state, column_state)
    sequence, start_m, h = chunk_at(tl.program_id(0), chunks_ptr, num_heads, BLOCK_M)
    split = tl.program_id(1)
    start_q, start_k, num_queries, num_keys, first_target = sequence_at(sequence, sequences, FLAGS)

    m = start_m + tl.arange(0, BLOCK_M)
    in_m = m < num_queries
    place = m + num_keys - num_queries
    q_tile = load_rows(rows_of(q, start_q, h), m, in_m, q.t, FLAGS.D, FLAGS.BLOCK_D, True)
    ts_m, rows = m, m
    if FLAGS.HAS_TIME:
        ts_m = load_each(terms.ts_q + start_q, m, in_m, 0, True)
    if FLAGS.HAS_DROPOUT:
        rows = dropout_hash(states[0], sequence, m, h)
    first_place = start_m + num_keys - num_queries
    last_place = tl.minimum(first_place + BLOCK_M, num_keys) - 1
    spans = key_spans(first_place, last_place, num_keys, first_target, masks, BLOCK_N, FLAGS)

    BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
    acc = tl.zeros([BLOCK_M, BLOCK_DV], FLAGS.ACC)
    highest = tl.full([BLOCK_M], float("-inf"), FLAGS.ACC)
    total = tl.zeros([BLOCK_M], FLAGS.ACC)
    edges, blocks = num_edges(spans, BLOCK_N), num_inner(spans, BLOCK_N)
    for t in range(edges * split // num_splits, edges * (split + 1) // num_splits):
        start, end = edge(t, spans, BLOCK_N)
        n = start + tl.arange(0, BLOCK_N)
        in_n = n < end
        seen = in_n[None, :] & sees(place[:, None], n[None, :], first_target, masks, FLAGS)
        acc, highest, total = _add_keys(
            acc, highest, total, q_tile, k, v, n, in_n, seen, place, ts_m, rows,
            sequence, start_k, h, terms, states, dropout, scale, True, FLAGS,
        )  # fmt: skip
    for t in range(blocks * split // num_splits, blocks * (split + 1) // num_splits):
        n = spans[3] + t * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = n >= 0
        acc, highest, total = _add_keys(
            acc, highest, total, q_tile, k, v, n, in_n, in_n[None, :], place, ts_m, rows,
            sequence, start_k, h, terms, states, dropout, scale, False, FLAGS,
        )  # fmt: skip

    s = split.to(tl.int64)
    if FLAGS.IS_SILU:
        acc = acc * silu_share
    else:
        has_key = total != 0
        total = tl.where(has_key, total, 1.0)
        acc = tl.where(has_key[:, None], acc / total[:, None], 0.0)
        if FLAGS.HAS_DROPOUT:
            acc = acc / dropout.kept_share
        lse = tl.where(has_key, (highest + tl.log2(total)) * LN_2, float("-inf"))
        tl.store(lse_ptr + h * lse_h + s * lse_s + start_q + m, lse, mask=in_m)
    store_rows(rows_of(out, start_q, h) + s * out_s, acc, m, in_m, out.t, FLAGS.DV, FLAGS.BLOCK_DV)


@triton.jit
def _add_keys(
    acc,
    highest,
    total,
    q_tile,
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
    MASKED: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """acc, highest and total with one more block of keys."""
    k_tile = load_rows(rows_of(k, start_k, h), n, in_n, k.t, FLAGS.D, FLAGS.BLOCK_D, MASKED)
    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC) * scale
    if FLAGS.HAS_TIME:
        ts_n = load_each(terms.ts_k + start_k, n, in_n, 0, MASKED)
        least, most = bucket_range(ts_m, ts_n, terms, FLAGS)
        scores += time_bias(gap_of(ts_m[:, None], ts_n[None, :]), least, most, terms, h, FLAGS)
    if FLAGS.HAS_POS:
        scores += pos_bias(place[:, None] - n[None, :], terms, h)
    v_tile = load_rows(rows_of(v, start_k, h), n, in_n, v.t, FLAGS.DV, FLAGS.BLOCK_DV, MASKED)
    if FLAGS.IS_SILU:
        weights = silu(scores)
        if MASKED:
            weights = tl.where(seen, weights, 0.0)
    else:
        scores = scores * LOG2_E
        if MASKED:
            scores = tl.where(seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weights = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(highest - pivot)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        highest = new_highest
        if FLAGS.HAS_DROPOUT:
            columns = dropout_hash(states[1], sequence, n, h)
            weights = tl.where(is_kept(rows[:, None], columns[None, :], dropout.threshold), weights, 0.0)
    acc += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    return acc, highest, total


@triton.jit(do_not_specialize=["num_rows", "num_splits", "lse_h", "part_lse_h", "part_lse_s", "part_s"])
def combine_kernel(
    parts,
    part_s,
    part_lse_ptr,
    part_lse_h,
    part_lse_s,
    out,
    lse_ptr,
    lse_h,
    num_rows,
    num_splits,
    num_heads,
    FLAGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Joins the parts of a block of rows, in their order: sums for SiLU, means weighted by exp(lse) for softmax."""
    h = (tl.program_id(0) % num_heads).to(tl.int64)
    m = (tl.program_id(0) // num_heads).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
    acc = tl.zeros([BLOCK_M, BLOCK_DV], FLAGS.ACC)
    highest = tl.full([BLOCK_M], float("-inf"), FLAGS.ACC)
    total = tl.zeros([BLOCK_M], FLAGS.ACC)
    part_ptr = parts.ptr + h * parts.h
    part_lse_ptr += h * part_lse_h
    for _ in range(num_splits):
        part = load_rows(part_ptr, m, in_m, parts.t, FLAGS.DV, FLAGS.BLOCK_DV, True)
        if FLAGS.IS_SILU:
            acc += part
        else:
            lse = tl.load(part_lse_ptr + m, mask=in_m, other=float("-inf")) * LOG2_E
            new_highest = tl.maximum(highest, lse)
            pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            weight, shrink = tl.exp2(lse - pivot), tl.exp2(highest - pivot)
            acc = acc * shrink[:, None] + part * weight[:, None]
            total = total * shrink + weight
            highest = new_highest
        part_ptr += part_s
        part_lse_ptr += part_lse_s
    if not FLAGS.IS_SILU:
        has_key = total != 0
        total = tl.where(has_key, total, 1.0)
        acc = tl.where(has_key[:, None], acc / total[:, None], 0.0)
        lse = tl.where(has_key, (highest + tl.log2(total)) * LN_2, float("-inf"))
        tl.store(lse_ptr + h * lse_h + m, lse, mask=in_m)
    store_rows(out.ptr + h * out.h, acc, m, in_m, out.t, FLAGS.DV, FLAGS.BLOCK_DV)

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
    silu_slope,
    store_rows,
    time_bias,
)
from recsys.kernels.attention.triton_path.triton_spans import edge, key_spans, num_edges, sees


@triton.jit(do_not_specialize=["row_state", "column_state", "threshold", "lse_h", "delta_h"])
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    grad_out_ptr,
    grad_lse_ptr,
    grad_q_ptr,
    delta_ptr,
    grad_time_ptr,
    chunks_ptr,
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
    out_t,
    out_h,
    grad_out_t,
    grad_out_h,
    grad_q_t,
    grad_q_h,
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
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_TIME_GRAD: tl.constexpr,
    HAS_POS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    IS_SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BISECTIONS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dq, delta (num_heads, Tq) and the chunk's row of grad_time (chunks, num_heads, num_buckets)."""
    chunk, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    sequence = tl.load(chunks_ptr + 2 * chunk)
    start_m = tl.load(chunks_ptr + 2 * chunk + 1) * BLOCK_M
    start_q, start_k = tl.load(offsets_q_ptr + sequence), tl.load(offsets_k_ptr + sequence)
    num_queries = (tl.load(offsets_q_ptr + sequence + 1) - start_q).to(tl.int32)
    num_keys = (tl.load(offsets_k_ptr + sequence + 1) - start_k).to(tl.int32)
    first_target = num_keys
    if HAS_TARGETS:
        first_target -= tl.load(num_targets_ptr + sequence)
    h = head.to(tl.int64)
    k_ptr += start_k * k_t + h * k_h
    v_ptr += start_k * v_t + h * v_h

    m = start_m + tl.arange(0, BLOCK_M)
    in_m = m < num_queries
    place = m + num_keys - num_queries
    q = load_rows(q_ptr + start_q * q_t + h * q_h, m, in_m, q_t, D, BLOCK_D, True)
    grad_out = load_rows(grad_out_ptr + start_q * grad_out_t + h * grad_out_h, m, in_m, grad_out_t, DV, BLOCK_DV, True)
    lse = tl.zeros([BLOCK_M], ACC)
    delta = tl.zeros([BLOCK_M], ACC)
    if not IS_SILU:
        out = load_rows(out_ptr + start_q * out_t + h * out_h, m, in_m, out_t, DV, BLOCK_DV, True)
        delta = tl.sum(out.to(ACC) * grad_out.to(ACC), 1)
        if HAS_GRAD_LSE:
            grad_lse = load_each(grad_lse_ptr + h * lse_h + start_q, m, in_m, 0.0, True)
            delta -= grad_lse
        tl.store(delta_ptr + h * delta_h + start_q + m, delta, mask=in_m)
        lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True) * LOG2_E

    first_place = start_m + num_keys - num_queries
    last_place = tl.minimum(first_place + BLOCK_M, num_keys) - 1
    global_end, low, inner, inner_end, high, own, own_end = key_spans(
        first_place,
        last_place,
        num_keys,
        first_target,
        left,
        right,
        num_global,
        target_group,
        BLOCK_N,
        CAUSAL,
        HAS_LEFT,
        HAS_RIGHT,
        HAS_GLOBAL,
        HAS_TARGETS,
    )
    ts_m = m
    if HAS_TIME:
        ts_m = load_each(ts_q_ptr + start_q, m, in_m, 0, True)
        time_table_ptr += h * time_h
        ts_k_ptr += start_k
    if HAS_POS:
        pos_table_ptr += h * pos_h
    rows = m
    if HAS_DROPOUT:
        rows = dropout_hash(row_state, sequence, m, head)

    grad_q = tl.zeros([BLOCK_M, BLOCK_D], ACC)
    grad_time = tl.zeros([BLOCK_B], ACC)
    edges = num_edges(0, global_end, low, inner, inner_end, high, own, own_end, BLOCK_N)
    for t in range(0, edges):
        start, end = edge(t, 0, global_end, low, inner, inner_end, high, own, own_end, BLOCK_N)
        n = start + tl.arange(0, BLOCK_N)
        in_n = n < end
        seen = (
            in_m[:, None]
            & in_n[None, :]
            & sees(
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
        )
        grad_q, grad_time = _add_keys(
            grad_q,
            grad_time,
            q,
            grad_out,
            lse,
            delta,
            k_ptr,
            v_ptr,
            n,
            in_n,
            seen,
            place,
            ts_m,
            rows,
            sequence,
            head,
            time_table_ptr,
            ts_k_ptr,
            thresholds_ptr,
            pos_table_ptr,
            k_t,
            v_t,
            scale,
            silu_share,
            num_buckets,
            reach,
            column_state,
            threshold,
            kept_share,
            True,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_B,
            HAS_TIME,
            HAS_TIME_GRAD,
            HAS_POS,
            HAS_DROPOUT,
            IS_SILU,
            STEPS,
            BISECTIONS,
            ACC,
            PRECISION,
        )
    for t in range(0, (inner_end - inner) // BLOCK_N):
        n = inner + t * BLOCK_N + tl.arange(0, BLOCK_N)
        grad_q, grad_time = _add_keys(
            grad_q,
            grad_time,
            q,
            grad_out,
            lse,
            delta,
            k_ptr,
            v_ptr,
            n,
            n >= 0,
            in_m[:, None],
            place,
            ts_m,
            rows,
            sequence,
            head,
            time_table_ptr,
            ts_k_ptr,
            thresholds_ptr,
            pos_table_ptr,
            k_t,
            v_t,
            scale,
            silu_share,
            num_buckets,
            reach,
            column_state,
            threshold,
            kept_share,
            False,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            BLOCK_B,
            HAS_TIME,
            HAS_TIME_GRAD,
            HAS_POS,
            HAS_DROPOUT,
            IS_SILU,
            STEPS,
            BISECTIONS,
            ACC,
            PRECISION,
        )
    store_rows(grad_q_ptr + start_q * grad_q_t + h * grad_q_h, grad_q * scale, m, in_m, grad_q_t, D, BLOCK_D)
    if HAS_TIME_GRAD:
        b = tl.arange(0, BLOCK_B)
        row = (chunk.to(tl.int64) * num_heads + head) * num_buckets
        tl.store(grad_time_ptr + row + b, grad_time, mask=b < num_buckets)


@triton.jit
def _add_keys(
    grad_q,
    grad_time,
    q,
    grad_out,
    lse,
    delta,
    k_ptr,
    v_ptr,
    n,
    in_n,
    seen,
    place,
    ts_m,
    rows,
    sequence,
    head,
    time_table_ptr,
    ts_k_ptr,
    thresholds_ptr,
    pos_table_ptr,
    k_t,
    v_t,
    scale,
    silu_share,
    num_buckets,
    reach,
    column_state,
    threshold,
    kept_share,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_B: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_TIME_GRAD: tl.constexpr,
    HAS_POS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BISECTIONS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_q and grad_time with one more block of keys."""
    k = load_rows(k_ptr, n, in_n, k_t, D, BLOCK_D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * scale
    gap, least, most = place[:, None], 0, 0
    if HAS_TIME:
        ts_n = load_each(ts_k_ptr, n, in_n, 0, MASKED)
        least, most = bucket_range(ts_m, ts_n, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
        gap = gap_of(ts_m[:, None], ts_n[None, :])
        scores += time_bias(gap, least, most, time_table_ptr, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
    if HAS_POS:
        scores += pos_bias(place[:, None] - n[None, :], pos_table_ptr, reach)
    v = load_rows(v_ptr, n, in_n, v_t, DV, BLOCK_DV, MASKED)
    grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
    if IS_SILU:
        grad_scores = silu_slope(scores) * grad_weights * silu_share
        if MASKED or HAS_TIME_GRAD:
            grad_scores = tl.where(seen, grad_scores, 0.0)
    else:
        if MASKED:
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.exp2(scores * LOG2_E - lse[:, None])
        if HAS_DROPOUT:
            columns = dropout_hash(column_state, sequence, n, head)
            kept = is_kept(rows[:, None], columns[None, :], threshold)
            grad_weights = tl.where(kept, grad_weights / kept_share, 0.0)
        grad_scores = weights * (grad_weights - delta[:, None])
    if HAS_TIME_GRAD:
        grad_time = add_to_buckets(
            grad_time, grad_scores, gap, least, most, thresholds_ptr, num_buckets, BLOCK_B, STEPS, BISECTIONS
        )
    grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision=PRECISION, out_dtype=ACC)
    return grad_q, grad_time

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
    store_rows,
)
from recsys.kernels.attention.triton_path.triton_spans import sees


@triton.jit(do_not_specialize=["row_state", "column_state", "threshold", "lse_h", "delta_h"])
def short_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    grad_out_ptr,
    grad_lse_ptr,
    grad_q_ptr,
    grad_k_ptr,
    grad_v_ptr,
    delta_ptr,
    grad_time_ptr,
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
    grad_k_t,
    grad_k_h,
    grad_v_t,
    grad_v_h,
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
    """Writes dq, dk, dv, delta (num_heads, Tq) and a row of grad_time; no sequence has over BLOCK_N keys."""
    sequence, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    start_q, start_k = tl.load(offsets_q_ptr + sequence), tl.load(offsets_k_ptr + sequence)
    num_queries = (tl.load(offsets_q_ptr + sequence + 1) - start_q).to(tl.int32)
    num_keys = (tl.load(offsets_k_ptr + sequence + 1) - start_k).to(tl.int32)
    shift = num_keys - num_queries
    first_target = num_keys
    if HAS_TARGETS:
        first_target -= tl.load(num_targets_ptr + sequence)
    h = head.to(tl.int64)
    q_ptr += start_q * q_t + h * q_h
    out_ptr += start_q * out_t + h * out_h
    grad_out_ptr += start_q * grad_out_t + h * grad_out_h
    grad_q_ptr += start_q * grad_q_t + h * grad_q_h
    n = tl.arange(0, BLOCK_N)
    in_n = n < num_keys
    k = load_rows(k_ptr + start_k * k_t + h * k_h, n, in_n, k_t, D, BLOCK_D, True)
    v = load_rows(v_ptr + start_k * v_t + h * v_h, n, in_n, v_t, DV, BLOCK_DV, True)
    ts_n, columns = n, n
    if HAS_TIME:
        ts_n = load_each(ts_k_ptr + start_k, n, in_n, 0, True)
        time_table_ptr += h * time_h
    if HAS_POS:
        pos_table_ptr += h * pos_h
    if HAS_DROPOUT:
        columns = dropout_hash(column_state, sequence, n, head)

    grad_k = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_v = tl.zeros([BLOCK_N, BLOCK_DV], ACC)
    grad_time = tl.zeros([BLOCK_B], ACC)
    for start in range(0, num_queries, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < num_queries
        q = load_rows(q_ptr, m, in_m, q_t, D, BLOCK_D, True)
        grad_out = load_rows(grad_out_ptr, m, in_m, grad_out_t, DV, BLOCK_DV, True)
        lse, delta, ts_m, rows = m, m, m, m
        if not IS_SILU:
            out = load_rows(out_ptr, m, in_m, out_t, DV, BLOCK_DV, True)
            delta = tl.sum(out.to(ACC) * grad_out.to(ACC), 1)
            if HAS_GRAD_LSE:
                delta -= load_each(grad_lse_ptr + h * lse_h + start_q, m, in_m, 0.0, True)
            tl.store(delta_ptr + h * delta_h + start_q + m, delta, mask=in_m)
            lse = load_lse(lse_ptr + h * lse_h + start_q, m, in_m, True)
        if HAS_TIME:
            ts_m = load_each(ts_q_ptr + start_q, m, in_m, 0, True)
        if HAS_DROPOUT:
            rows = dropout_hash(row_state, sequence, m, head)
        seen = (in_n[:, None] & in_m[None, :]) & sees(
            (m + shift)[None, :],
            n[:, None],
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
        kept_weights, grad_scores = transposed_gradients(
            k,
            v,
            q,
            grad_out,
            lse,
            delta,
            ts_m,
            ts_n,
            rows,
            columns,
            seen,
            (m + shift)[None, :] - n[:, None],
            time_table_ptr,
            thresholds_ptr,
            pos_table_ptr,
            scale,
            silu_share,
            num_buckets,
            reach,
            threshold,
            kept_share,
            True,
            HAS_TIME,
            HAS_POS,
            HAS_DROPOUT,
            IS_SILU,
            STEPS,
            BISECTIONS,
            ACC,
            PRECISION,
        )
        grad_v += tl.dot(kept_weights.to(grad_out.dtype), grad_out, input_precision=PRECISION, out_dtype=ACC)
        narrow = grad_scores.to(q.dtype)
        grad_k += tl.dot(narrow, q, input_precision=PRECISION, out_dtype=ACC)
        grad_q = tl.dot(tl.trans(k), narrow, input_precision=PRECISION, out_dtype=ACC) * scale  # (BLOCK_D, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        at = grad_q_ptr + m.to(tl.int64)[None, :] * grad_q_t + d[:, None]
        tl.store(at, grad_q.to(grad_q_ptr.dtype.element_ty), mask=in_m[None, :] & (d < D)[:, None])
        if HAS_TIME_GRAD:
            least, most = bucket_range(ts_m, ts_n, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
            gap = gap_of(ts_m[None, :], ts_n[:, None])
            grad_time = add_to_buckets(
                grad_time, grad_scores, gap, least, most, thresholds_ptr, num_buckets, BLOCK_B, STEPS, BISECTIONS
            )
    store_rows(grad_k_ptr + start_k * grad_k_t + h * grad_k_h, grad_k * scale, n, in_n, grad_k_t, D, BLOCK_D)
    store_rows(grad_v_ptr + start_k * grad_v_t + h * grad_v_h, grad_v, n, in_n, grad_v_t, DV, BLOCK_DV)
    if HAS_TIME_GRAD:
        b = tl.arange(0, BLOCK_B)
        row = (sequence.to(tl.int64) * num_heads + head) * num_buckets
        tl.store(grad_time_ptr + row + b, grad_time, mask=b < num_buckets)

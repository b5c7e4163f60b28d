# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradients of keys and values: a program for each block of keys, which goes over the queries that see it.

It forms the transposed scores k q^T at once: only tiles that were loaded are transposed, never the result of a product
(Triton before 3.7.1 miscompiles that on Hopper at a width of 64). Formulas: `triton_backward_queries.py`.
"""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_gradients import transposed_gradients
from recsys.kernels.attention.triton_path.triton_scores import dropout_hash, load_each, load_lse, load_rows, store_rows
from recsys.kernels.attention.triton_path.triton_spans import edge, num_edges, query_spans, sees


@triton.jit(do_not_specialize=["row_state", "column_state", "threshold", "lse_h", "delta_h"])
def key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    lse_ptr,
    delta_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
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
    grad_out_t,
    grad_out_h,
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    HAS_GLOBAL: tl.constexpr,
    HAS_TARGETS: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_POS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BISECTIONS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dk and dv of one block of keys; `chunks` counts in blocks of BLOCK_N keys."""
    chunk, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    sequence = tl.load(chunks_ptr + 2 * chunk)
    start_n = tl.load(chunks_ptr + 2 * chunk + 1) * BLOCK_N
    start_q, start_k = tl.load(offsets_q_ptr + sequence), tl.load(offsets_k_ptr + sequence)
    num_queries = (tl.load(offsets_q_ptr + sequence + 1) - start_q).to(tl.int32)
    num_keys = (tl.load(offsets_k_ptr + sequence + 1) - start_k).to(tl.int32)
    shift = num_keys - num_queries
    first_target = num_keys
    if HAS_TARGETS:
        first_target -= tl.load(num_targets_ptr + sequence)
    h = head.to(tl.int64)
    q_ptr += start_q * q_t + h * q_h
    grad_out_ptr += start_q * grad_out_t + h * grad_out_h
    lse_ptr += h * lse_h + start_q
    delta_ptr += h * delta_h + start_q

    n = start_n + tl.arange(0, BLOCK_N)
    in_n = n < num_keys
    k = load_rows(k_ptr + start_k * k_t + h * k_h, n, in_n, k_t, D, BLOCK_D, True)
    v = load_rows(v_ptr + start_k * v_t + h * v_h, n, in_n, v_t, DV, BLOCK_DV, True)
    last_key = tl.minimum(start_n + BLOCK_N, num_keys) - 1
    first, global_end, low, inner, inner_end, high, own, own_end = query_spans(
        start_n,
        last_key,
        num_queries,
        num_keys,
        first_target,
        left,
        right,
        num_global,
        target_group,
        BLOCK_M,
        CAUSAL,
        HAS_LEFT,
        HAS_RIGHT,
        HAS_GLOBAL,
        HAS_TARGETS,
    )
    ts_n = n
    if HAS_TIME:
        ts_n = load_each(ts_k_ptr + start_k, n, in_n, 0, True)
        time_table_ptr += h * time_h
        ts_q_ptr += start_q
    if HAS_POS:
        pos_table_ptr += h * pos_h
    columns = n
    if HAS_DROPOUT:
        columns = dropout_hash(column_state, sequence, n, head)

    grad_k = tl.zeros([BLOCK_N, BLOCK_D], ACC)
    grad_v = tl.zeros([BLOCK_N, BLOCK_DV], ACC)
    edges = num_edges(first, global_end, low, inner, inner_end, high, own, own_end, BLOCK_M)
    for t in range(0, edges):
        start, end = edge(t, first, global_end, low, inner, inner_end, high, own, own_end, BLOCK_M)
        m = start + tl.arange(0, BLOCK_M)
        in_m = m < end
        seen = in_m[None, :] & sees(
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
        grad_k, grad_v = _add_queries(
            grad_k,
            grad_v,
            k,
            v,
            q_ptr,
            grad_out_ptr,
            lse_ptr,
            delta_ptr,
            m,
            in_m,
            seen,
            n,
            ts_n,
            columns,
            shift,
            sequence,
            head,
            time_table_ptr,
            ts_q_ptr,
            thresholds_ptr,
            pos_table_ptr,
            q_t,
            grad_out_t,
            scale,
            silu_share,
            num_buckets,
            reach,
            row_state,
            threshold,
            kept_share,
            True,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            HAS_TIME,
            HAS_POS,
            HAS_DROPOUT,
            IS_SILU,
            STEPS,
            BISECTIONS,
            ACC,
            PRECISION,
        )
    for t in range(0, (inner_end - inner) // BLOCK_M):
        m = inner + t * BLOCK_M + tl.arange(0, BLOCK_M)
        grad_k, grad_v = _add_queries(
            grad_k,
            grad_v,
            k,
            v,
            q_ptr,
            grad_out_ptr,
            lse_ptr,
            delta_ptr,
            m,
            m >= 0,
            (m >= 0)[None, :],
            n,
            ts_n,
            columns,
            shift,
            sequence,
            head,
            time_table_ptr,
            ts_q_ptr,
            thresholds_ptr,
            pos_table_ptr,
            q_t,
            grad_out_t,
            scale,
            silu_share,
            num_buckets,
            reach,
            row_state,
            threshold,
            kept_share,
            False,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            HAS_TIME,
            HAS_POS,
            HAS_DROPOUT,
            IS_SILU,
            STEPS,
            BISECTIONS,
            ACC,
            PRECISION,
        )
    store_rows(grad_k_ptr + start_k * grad_k_t + h * grad_k_h, grad_k * scale, n, in_n, grad_k_t, D, BLOCK_D)
    store_rows(grad_v_ptr + start_k * grad_v_t + h * grad_v_h, grad_v, n, in_n, grad_v_t, DV, BLOCK_DV)


@triton.jit
def _add_queries(
    grad_k,
    grad_v,
    k,
    v,
    q_ptr,
    grad_out_ptr,
    lse_ptr,
    delta_ptr,
    m,
    in_m,
    seen,
    n,
    ts_n,
    columns,
    shift,
    sequence,
    head,
    time_table_ptr,
    ts_q_ptr,
    thresholds_ptr,
    pos_table_ptr,
    q_t,
    grad_out_t,
    scale,
    silu_share,
    num_buckets,
    reach,
    row_state,
    threshold,
    kept_share,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_TIME: tl.constexpr,
    HAS_POS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
    IS_SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BISECTIONS: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_k and grad_v with one more block of queries; tiles are (BLOCK_N, BLOCK_M)."""
    q = load_rows(q_ptr, m, in_m, q_t, D, BLOCK_D, MASKED)
    grad_out = load_rows(grad_out_ptr, m, in_m, grad_out_t, DV, BLOCK_DV, MASKED)
    lse, delta, ts_m, rows = m, m, m, m
    if HAS_TIME:
        ts_m = load_each(ts_q_ptr, m, in_m, 0, MASKED)
    if HAS_DROPOUT:
        rows = dropout_hash(row_state, sequence, m, head)
    if not IS_SILU:
        lse = load_lse(lse_ptr, m, in_m, MASKED)
        delta = load_each(delta_ptr, m, in_m, 0.0, MASKED)
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
        MASKED,
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
    grad_k += tl.dot(grad_scores.to(q.dtype), q, input_precision=PRECISION, out_dtype=ACC)
    return grad_k, grad_v

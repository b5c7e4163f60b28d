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
    silu,
    store_rows,
    time_bias,
)
from recsys.kernels.attention.triton_path.triton_spans import edge, key_spans, num_edges, sees


@triton.jit(do_not_specialize=["row_state", "column_state", "threshold", "lse_h", "lse_s", "out_s"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
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
    out_s,
    lse_h,
    lse_s,
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
    num_splits,
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
    """Writes out and, for softmax, lse of a block of queries, a head and a part of the keys."""
    chunk, head, split = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads, tl.program_id(1)
    sequence = tl.load(chunks_ptr + 2 * chunk)
    start_m = tl.load(chunks_ptr + 2 * chunk + 1) * BLOCK_M
    start_q, start_k = tl.load(offsets_q_ptr + sequence), tl.load(offsets_k_ptr + sequence)
    num_queries = (tl.load(offsets_q_ptr + sequence + 1) - start_q).to(tl.int32)
    num_keys = (tl.load(offsets_k_ptr + sequence + 1) - start_k).to(tl.int32)
    first_target = num_keys
    if HAS_TARGETS:
        first_target -= tl.load(num_targets_ptr + sequence)
    h = head.to(tl.int64)
    q_ptr += start_q * q_t + h * q_h
    k_ptr += start_k * k_t + h * k_h
    v_ptr += start_k * v_t + h * v_h

    m = start_m + tl.arange(0, BLOCK_M)
    in_m = m < num_queries
    place = m + num_keys - num_queries
    q = load_rows(q_ptr, m, in_m, q_t, D, BLOCK_D, True)
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

    acc = tl.zeros([BLOCK_M, BLOCK_DV], ACC)
    highest = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    edges = num_edges(0, global_end, low, inner, inner_end, high, own, own_end, BLOCK_N)
    for t in range(edges * split // num_splits, edges * (split + 1) // num_splits):
        start, end = edge(t, 0, global_end, low, inner, inner_end, high, own, own_end, BLOCK_N)
        n = start + tl.arange(0, BLOCK_N)
        in_n = n < end
        seen = in_n[None, :] & sees(
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
        acc, highest, total = _add_keys(
            acc,
            highest,
            total,
            q,
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
            num_buckets,
            reach,
            column_state,
            threshold,
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
    blocks = (inner_end - inner) // BLOCK_N
    for t in range(blocks * split // num_splits, blocks * (split + 1) // num_splits):
        n = inner + t * BLOCK_N + tl.arange(0, BLOCK_N)
        acc, highest, total = _add_keys(
            acc,
            highest,
            total,
            q,
            k_ptr,
            v_ptr,
            n,
            n >= 0,
            (n >= 0)[None, :],
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
            num_buckets,
            reach,
            column_state,
            threshold,
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

    out_ptr += start_q * out_t + h * out_h + split.to(tl.int64) * out_s
    if IS_SILU:
        acc = acc * silu_share
    else:
        has_key = total > 0
        total = tl.where(has_key, total, 1.0)
        acc = tl.where(has_key[:, None], acc / total[:, None], 0.0)
        if HAS_DROPOUT:
            acc = acc / kept_share
        lse = tl.where(has_key, (highest + tl.log2(total)) * LN_2, float("-inf"))
        tl.store(lse_ptr + h * lse_h + split.to(tl.int64) * lse_s + start_q + m, lse, mask=in_m)
    store_rows(out_ptr, acc, m, in_m, out_t, DV, BLOCK_DV)


@triton.jit
def _add_keys(
    acc,
    highest,
    total,
    q,
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
    num_buckets,
    reach,
    column_state,
    threshold,
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
    """acc, highest and total with one more block of keys."""
    k = load_rows(k_ptr, n, in_n, k_t, D, BLOCK_D, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * scale
    if HAS_TIME:
        ts_n = load_each(ts_k_ptr, n, in_n, 0, MASKED)
        least, most = bucket_range(ts_m, ts_n, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
        gap = gap_of(ts_m[:, None], ts_n[None, :])
        scores += time_bias(gap, least, most, time_table_ptr, thresholds_ptr, num_buckets, STEPS, BISECTIONS)
    if HAS_POS:
        scores += pos_bias(place[:, None] - n[None, :], pos_table_ptr, reach)
    v = load_rows(v_ptr, n, in_n, v_t, DV, BLOCK_DV, MASKED)
    if IS_SILU:
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
        if HAS_DROPOUT:
            columns = dropout_hash(column_state, sequence, n, head)
            weights = tl.where(is_kept(rows[:, None], columns[None, :], threshold), weights, 0.0)
    acc += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION, out_dtype=ACC)
    return acc, highest, total


@triton.jit(do_not_specialize=["num_rows", "part_lse_h", "part_lse_s", "part_s"])
def combine_kernel(
    part_ptr,
    part_lse_ptr,
    out_ptr,
    lse_ptr,
    part_t,
    part_h,
    part_s,
    part_lse_h,
    part_lse_s,
    out_t,
    out_h,
    lse_h,
    num_rows,
    num_splits,
    num_heads,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    IS_SILU: tl.constexpr,
    ACC: tl.constexpr,
):
    """Joins the parts of a block of rows, in their order: sums for SiLU, means weighted by exp(lse) for softmax."""
    h = (tl.program_id(0) % num_heads).to(tl.int64)
    m = (tl.program_id(0) // num_heads).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = m < num_rows
    acc = tl.zeros([BLOCK_M, BLOCK_DV], ACC)
    highest = tl.full([BLOCK_M], float("-inf"), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    part_ptr += h * part_h
    part_lse_ptr += h * part_lse_h
    for _ in range(num_splits):
        part = load_rows(part_ptr, m, in_m, part_t, DV, BLOCK_DV, True)
        if IS_SILU:
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
    if not IS_SILU:
        has_key = total > 0
        total = tl.where(has_key, total, 1.0)
        acc = tl.where(has_key[:, None], acc / total[:, None], 0.0)
        lse = tl.where(has_key, (highest + tl.log2(total)) * LN_2, float("-inf"))
        tl.store(lse_ptr + h * lse_h + m, lse, mask=in_m)
    store_rows(out_ptr + h * out_h, acc, m, in_m, out_t, DV, BLOCK_DV)

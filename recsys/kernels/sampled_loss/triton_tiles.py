# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of sampled_loss for rows that share lists of negatives: matrix products of a piece of rows and its list.

[M] rows, [K] negatives, [D] width. Products with derivatives take narrow inputs as tf32, which holds them exactly and
rounds the derivatives less; the transposed product is formed directly, never by turning a result.
"""

import triton
import triton.language as tl

from recsys.kernels.sampled_loss.triton_terms import (
    coefficients,
    first_state,
    known,
    next_state,
    offsets_of,
    row_terms,
    target_terms,
)


@triton.jit
def tiles_forward_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    log_q_ptr,
    target_ptr,
    lists_ptr,
    rows_ptr,
    list_ptr,
    begin_ptr,
    end_ptr,
    loss_ptr,
    of_target_ptr,
    scale_ptr,
    pivot_ptr,
    V,
    K,
    D,
    KIND: tl.constexpr,
    BETA: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0)
    begin, end = tl.load(begin_ptr + piece), tl.load(end_ptr + piece)
    first_id_ptr = lists_ptr + tl.load(list_ptr + piece) * K
    d = tl.arange(0, BLOCK_D)
    row, is_row, x, target = _piece_rows(x_ptr, target_ptr, rows_ptr, begin, end, d, D, BLOCK_M)
    of_item = tl.load(
        w_ptr + known(target, V)[:, None] * D + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0
    )
    product = tl.sum(x.to(ACC) * of_item.to(ACC), axis=1)
    s, log_q = target_terms(product, target, V, bias_ptr, log_q_ptr, KIND, HAS_BIAS, HAS_LOG_Q, ACC)
    m, z, num = first_state(s, KIND)
    for start in range(0, tl.where(begin < end, K, 0), BLOCK_K):
        ids = _list_ids(first_id_ptr, start, K, BLOCK_K)
        if DOT_D == BLOCK_D:
            a = tl.dot(x, _vectors_t(w_ptr, ids, d, V, D), input_precision="ieee", out_dtype=ACC)
        else:
            is_item = (ids >= 0) & (ids < V)
            a = _products(x_ptr, row, is_row, w_ptr, known(ids, V), is_item, D, ACC, BLOCK_M, BLOCK_K, BLOCK_D, DOT_D)
        a += offsets_of(ids, V, bias_ptr, log_q_ptr, HAS_BIAS, HAS_LOG_Q, ACC)[None, :]
        counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        m, z, num = next_state(a, counts, m, z, num, KIND)
    loss, of_target, scale, pivot = row_terms(s, log_q, m, z, num, KIND, BETA)
    tl.store(loss_ptr + row, loss, mask=is_row)
    tl.store(of_target_ptr + row, of_target, mask=is_row)
    tl.store(scale_ptr + row, scale, mask=is_row)
    tl.store(pivot_ptr + row, pivot, mask=is_row)


@triton.jit
def tiles_backward_x_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    log_q_ptr,
    target_ptr,
    lists_ptr,
    rows_ptr,
    list_ptr,
    begin_ptr,
    end_ptr,
    weight_ptr,
    of_target_ptr,
    scale_ptr,
    pivot_ptr,
    dx_ptr,
    V,
    K,
    D,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0)
    begin, end = tl.load(begin_ptr + piece), tl.load(end_ptr + piece)
    first_id_ptr = lists_ptr + tl.load(list_ptr + piece) * K
    d = tl.arange(0, BLOCK_D)
    row, is_row, x, target = _piece_rows(x_ptr, target_ptr, rows_ptr, begin, end, d, D, BLOCK_M)
    pivot = tl.load(pivot_ptr + row, mask=is_row, other=0.0)
    dx = tl.zeros([BLOCK_M, BLOCK_D], dtype=ACC)
    for start in range(0, tl.where(begin < end, K, 0), BLOCK_K):
        ids = _list_ids(first_id_ptr, start, K, BLOCK_K)
        if DOT_D == BLOCK_D:
            a = tl.dot(x, _vectors_t(w_ptr, ids, d, V, D), input_precision="ieee", out_dtype=ACC)
        else:
            is_item = (ids >= 0) & (ids < V)
            a = _products(x_ptr, row, is_row, w_ptr, known(ids, V), is_item, D, ACC, BLOCK_M, BLOCK_K, BLOCK_D, DOT_D)
        a += offsets_of(ids, V, bias_ptr, log_q_ptr, HAS_BIAS, HAS_LOG_Q, ACC)[None, :]
        counts = is_row[:, None] & (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        e = coefficients(a, counts, pivot[:, None], KIND)
        dx = tl.dot(e, _vectors(w_ptr, ids, d, V, D).to(ACC), dx, input_precision=PRECISION, out_dtype=ACC)
    weight = tl.load(weight_ptr + row, mask=is_row, other=0.0).to(ACC)
    dx *= (weight * tl.load(scale_ptr + row, mask=is_row, other=0.0))[:, None]
    here = is_row[:, None] & (d < D)[None, :]
    of_item = tl.load(w_ptr + known(target, V)[:, None] * D + d[None, :], mask=here, other=0.0).to(ACC)
    dx += of_item * (weight * tl.load(of_target_ptr + row, mask=is_row, other=0.0))[:, None]
    tl.store(dx_ptr + row[:, None] * D + d[None, :], dx, mask=here)


@triton.jit
def tiles_backward_w_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    log_q_ptr,
    target_ptr,
    lists_ptr,
    rows_ptr,
    list_ptr,
    begin_ptr,
    end_ptr,
    weight_ptr,
    scale_ptr,
    pivot_ptr,
    dv_ptr,
    dbias_ptr,
    V,
    K,
    D,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(begin_ptr + piece), tl.load(end_ptr + piece)
    start_k = tl.program_id(1) * BLOCK_K
    k, d = start_k + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    ids = _list_ids(lists_ptr + tl.load(list_ptr + piece) * K, start_k, K, BLOCK_K)
    vectors = _vectors(w_ptr, ids, d, V, D)
    offsets = offsets_of(ids, V, bias_ptr, log_q_ptr, HAS_BIAS, HAS_LOG_Q, ACC)
    dv = tl.zeros([BLOCK_K, BLOCK_D], dtype=ACC)
    dbias = tl.zeros([BLOCK_K], dtype=ACC)
    for start in range(begin, end, BLOCK_M):
        row, is_row, x, target = _piece_rows(x_ptr, target_ptr, rows_ptr, start, end, d, D, BLOCK_M)
        if DOT_D == BLOCK_D:
            here = is_row[None, :] & (d < D)[:, None]
            x_t = tl.load(x_ptr + row[None, :] * D + d[:, None], mask=here, other=0.0)
            a = tl.dot(vectors, x_t, input_precision="ieee", out_dtype=ACC)  # [K, M]
        else:
            is_item = (ids >= 0) & (ids < V)
            a = _products(w_ptr, known(ids, V), is_item, x_ptr, row, is_row, D, ACC, BLOCK_K, BLOCK_M, BLOCK_D, DOT_D)
        a += offsets[:, None]
        counts = is_row[None, :] & (ids != -1)[:, None] & (ids[:, None] != target[None, :])
        pivot = tl.load(pivot_ptr + row, mask=is_row, other=0.0)
        factor = tl.load(weight_ptr + row, mask=is_row, other=0.0).to(ACC)
        factor *= tl.load(scale_ptr + row, mask=is_row, other=0.0)
        e = coefficients(a, counts, pivot[None, :], KIND) * factor[None, :]
        dv = tl.dot(e, x.to(ACC), dv, input_precision=PRECISION, out_dtype=ACC)
        dbias += tl.sum(e, axis=1)
    slot = piece * K + k
    tl.store(dv_ptr + slot[:, None] * D + d[None, :], dv, mask=(k < K)[:, None] & (d < D)[None, :])
    tl.store(dbias_ptr + slot, dbias, mask=k < K)


@triton.jit
def _products(
    left_ptr,
    left,
    is_left,
    right_ptr,
    right,
    is_right,
    D,
    ACC: tl.constexpr,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT_D: tl.constexpr,
):
    """[left, right]: products of rows of two tables, DOT_D columns at a time.

    A product in full float32 has no tensor cores, and each thread holds whole rows of what it multiplies.
    """
    a = tl.zeros([BLOCK_LEFT, BLOCK_RIGHT], dtype=ACC)
    for start in range(0, BLOCK_D, DOT_D):
        d = start + tl.arange(0, DOT_D)
        here, there = is_left[:, None] & (d < D)[None, :], is_right[None, :] & (d < D)[:, None]
        rows = tl.load(left_ptr + left[:, None] * D + d[None, :], mask=here, other=0.0)
        columns = tl.load(right_ptr + right[None, :] * D + d[:, None], mask=there, other=0.0)
        a = tl.dot(rows, columns, a, input_precision="ieee", out_dtype=ACC)
    return a


@triton.jit
def _piece_rows(x_ptr, target_ptr, rows_ptr, begin, end, d, D, BLOCK_M: tl.constexpr):
    """Numbers [M], whether there is a row, vectors [M, D] and targets [M] of the rows from `begin`."""
    place = begin + tl.arange(0, BLOCK_M)
    is_row = place < end
    row = tl.load(rows_ptr + place, mask=is_row, other=0)
    x = tl.load(x_ptr + row[:, None] * D + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
    return row, is_row, x, tl.load(target_ptr + row, mask=is_row, other=0)


@triton.jit
def _list_ids(first_id_ptr, start, K, BLOCK_K: tl.constexpr):
    """Ids [K] of a list from `start`, -1 behind the last."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(first_id_ptr + k, mask=k < K, other=-1)


@triton.jit
def _vectors(w_ptr, ids, d, V, D):
    """[K, D]; zeros for -1 and for ids outside."""
    here = ((ids >= 0) & (ids < V))[:, None] & (d < D)[None, :]
    return tl.load(w_ptr + known(ids, V)[:, None] * D + d[None, :], mask=here, other=0.0)


@triton.jit
def _vectors_t(w_ptr, ids, d, V, D):
    """[D, K], the same transposed."""
    here = ((ids >= 0) & (ids < V))[None, :] & (d < D)[:, None]
    return tl.load(w_ptr + known(ids, V)[None, :] * D + d[:, None], mask=here, other=0.0)

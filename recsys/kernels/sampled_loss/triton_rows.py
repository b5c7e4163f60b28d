# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of sampled_loss for rows that have negatives of their own: one program a row.

[K] negatives of a block, [D] width.
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


@triton.jit(do_not_specialize=["K"])
def rows_forward_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    log_q_ptr,
    target_ptr,
    negatives_ptr,
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
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    one = n + tl.arange(0, 1)  # [1], the row: states are vectors
    d = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + n * D + d, mask=d < D, other=0.0).to(ACC)
    target = tl.load(target_ptr + one)
    of_item = tl.load(w_ptr + known(target, V)[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0).to(ACC)
    product = tl.sum(of_item * x[None, :], axis=1)
    s, log_q = target_terms(product, target, V, bias_ptr, log_q_ptr, KIND, HAS_BIAS, HAS_LOG_Q, ACC)
    m, z, num = first_state(s, KIND)
    for start in range(0, K, BLOCK_K):
        ids, vectors = _negatives(negatives_ptr, w_ptr, n, start, d, V, K, D, ACC, BLOCK_K)
        a = tl.sum(vectors * x[None, :], axis=1)
        a += offsets_of(ids, V, bias_ptr, log_q_ptr, HAS_BIAS, HAS_LOG_Q, ACC)
        counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        m, z, num = next_state(a[None, :], counts, m, z, num, KIND)
    loss, of_target, scale, pivot = row_terms(s, log_q, m, z, num, KIND, BETA)
    tl.store(loss_ptr + one, loss)
    tl.store(of_target_ptr + one, of_target)
    tl.store(scale_ptr + one, scale)
    tl.store(pivot_ptr + one, pivot)


@triton.jit(do_not_specialize=["K"])
def rows_backward_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    log_q_ptr,
    target_ptr,
    negatives_ptr,
    weight_ptr,
    of_target_ptr,
    scale_ptr,
    pivot_ptr,
    dx_ptr,
    coefficients_ptr,
    V,
    K,
    D,
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOG_Q: tl.constexpr,
    HAS_DX: tl.constexpr,
    HAS_COEFFICIENTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    x = tl.load(x_ptr + n * D + d, mask=d < D, other=0.0).to(ACC)
    target = tl.load(target_ptr + n)
    weight, pivot = tl.load(weight_ptr + n).to(ACC), tl.load(pivot_ptr + n)
    factor, of_target = weight * tl.load(scale_ptr + n), weight * tl.load(of_target_ptr + n)
    dx = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, K, BLOCK_K):
        ids, vectors = _negatives(negatives_ptr, w_ptr, n, start, d, V, K, D, ACC, BLOCK_K)
        a = tl.sum(vectors * x[None, :], axis=1)
        a += offsets_of(ids, V, bias_ptr, log_q_ptr, HAS_BIAS, HAS_LOG_Q, ACC)
        e = coefficients(a, (ids != -1) & (ids != target), pivot, KIND)
        if HAS_DX:
            dx += tl.sum(vectors * e[:, None], axis=0)
        if HAS_COEFFICIENTS:
            k = start + tl.arange(0, BLOCK_K)
            tl.store(coefficients_ptr + n * (K + 1) + k, e * factor, mask=k < K)
    if HAS_DX:
        of_item = tl.load(w_ptr + known(target, V) * D + d, mask=d < D, other=0.0).to(ACC)
        tl.store(dx_ptr + n * D + d, dx * factor + of_item * of_target, mask=d < D)
    if HAS_COEFFICIENTS:
        tl.store(coefficients_ptr + n * (K + 1) + K, of_target)


@triton.jit
def _negatives(negatives_ptr, w_ptr, n, start, d, V, K, D, ACC: tl.constexpr, BLOCK_K: tl.constexpr):
    """Ids [K] of the row's negatives from `start`, -1 behind the last; their vectors [K, D]."""
    k = start + tl.arange(0, BLOCK_K)
    ids = tl.load(negatives_ptr + n * K + k, mask=k < K, other=-1)
    is_met = (ids >= 0) & (ids < V)
    vectors = tl.load(
        w_ptr + known(ids, V)[:, None] * D + d[None, :], mask=is_met[:, None] & (d < D)[None, :], other=0.0
    )
    return ids, vectors.to(ACC)

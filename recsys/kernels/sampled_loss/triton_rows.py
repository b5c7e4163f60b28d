# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Kernels of sampled_loss for rows that have negatives of their own: one program a row.

[K] negatives of a block, [D] width.
"""

import triton
import triton.language as tl

from recsys.kernels.sampled_loss.triton_terms import (
    coefficients,
    first_state,
    item_vectors,
    next_state,
    offsets_of,
    row_terms,
    target_terms,
)


@triton.jit(do_not_specialize=["K"])
def rows_forward_kernel(
    given,
    negatives_ptr,
    loss_ptr,
    states,
    K,
    FLAGS: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    one = n + tl.arange(0, 1)  # [1], the row: states are vectors
    d = tl.arange(0, FLAGS.BLOCK_D)
    x = tl.load(given.x + n * FLAGS.D + d, mask=d < FLAGS.D, other=0.0).to(FLAGS.ACC)
    target = tl.load(given.target + one)
    of_item = item_vectors(target, given, d, FLAGS).to(FLAGS.ACC)
    product = tl.sum(of_item * x[None, :], axis=1)
    s, log_q = target_terms(product, target, given, FLAGS)
    m, z, num = first_state(s, FLAGS.KIND)
    for start in range(0, K, BLOCK_K):
        ids, vectors = _negatives(negatives_ptr, given, n, start, d, K, FLAGS, BLOCK_K)
        a = tl.sum(vectors * x[None, :], axis=1)
        a += offsets_of(ids, given, FLAGS)
        counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        m, z, num = next_state(a[None, :], counts, m, z, num, FLAGS.KIND)
    loss, of_target, scale, pivot = row_terms(s, log_q, m, z, num, FLAGS.KIND, BETA)
    tl.store(loss_ptr + one, loss)
    tl.store(states.of_target + one, of_target)
    tl.store(states.scale + one, scale)
    tl.store(states.pivot + one, pivot)


@triton.jit(do_not_specialize=["K"])
def rows_backward_kernel(
    given,
    negatives_ptr,
    weight_ptr,
    states,
    dx_ptr,
    coefficients_ptr,
    K,
    FLAGS: tl.constexpr,
    HAS_DX: tl.constexpr,
    HAS_COEFFICIENTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, FLAGS.BLOCK_D)
    x = tl.load(given.x + n * FLAGS.D + d, mask=d < FLAGS.D, other=0.0).to(FLAGS.ACC)
    target = tl.load(given.target + n)
    weight, pivot = tl.load(weight_ptr + n).to(FLAGS.ACC), tl.load(states.pivot + n)
    factor, of_target = weight * tl.load(states.scale + n), weight * tl.load(states.of_target + n)
    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dx = tl.zeros([BLOCK_D], dtype=FLAGS.ACC)
    for start in range(0, K, BLOCK_K):
        ids, vectors = _negatives(negatives_ptr, given, n, start, d, K, FLAGS, BLOCK_K)
        a = tl.sum(vectors * x[None, :], axis=1)
        a += offsets_of(ids, given, FLAGS)
        e = coefficients(a, (ids != -1) & (ids != target), pivot, FLAGS.KIND)
        if HAS_DX:
            dx += tl.sum(vectors * e[:, None], axis=0)
        if HAS_COEFFICIENTS:
            k = start + tl.arange(0, BLOCK_K)
            tl.store(coefficients_ptr + n * (K + 1) + k, e * factor, mask=k < K)
    if HAS_DX:
        of_item = tl.sum(item_vectors(target + tl.arange(0, 1), given, d, FLAGS), axis=0).to(FLAGS.ACC)
        tl.store(dx_ptr + n * FLAGS.D + d, dx * factor + of_item * of_target, mask=d < FLAGS.D)
    if HAS_COEFFICIENTS:
        tl.store(coefficients_ptr + n * (K + 1) + K, of_target)


@triton.jit
def _negatives(negatives_ptr, given, n, start, d, K, FLAGS: tl.constexpr, BLOCK_K: tl.constexpr):
    """Ids [K] of the row's negatives from `start`, -1 behind the last; their vectors [K, D]."""
    k = start + tl.arange(0, BLOCK_K)
    ids = tl.load(negatives_ptr + n * K + k, mask=k < K, other=-1)
    return ids, item_vectors(ids, given, d, FLAGS).to(FLAGS.ACC)

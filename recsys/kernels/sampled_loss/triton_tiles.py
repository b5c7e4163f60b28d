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
    item_vectors,
    known,
    next_state,
    offsets_of,
    row_terms,
    target_terms,
)


@triton.jit
def tiles_forward_kernel(
    given,
    lists_ptr,
    pieces,
    loss_ptr,
    states,
    K,
    FLAGS: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0)
    begin, end = tl.load(pieces.begins + piece), tl.load(pieces.ends + piece)
    first_id_ptr = lists_ptr + tl.load(pieces.lists + piece) * K
    d = tl.arange(0, FLAGS.BLOCK_D)
    row, is_row, x, target = _piece_rows(given, pieces, begin, end, d, FLAGS, BLOCK_M)
    of_item = item_vectors(target, given, d, FLAGS)
    product = tl.sum(x.to(FLAGS.ACC) * of_item.to(FLAGS.ACC), axis=1)
    s, log_q = target_terms(product, target, given, FLAGS)
    m, z, num = first_state(s, FLAGS.KIND)
    for start in range(0, tl.where(begin < end, K, 0), BLOCK_K):
        ids = _list_ids(first_id_ptr, start, K, BLOCK_K)
        if DOT_D == FLAGS.BLOCK_D:
            a = tl.dot(x, _vectors_t(ids, given, d, FLAGS), input_precision="ieee", out_dtype=FLAGS.ACC)
        else:
            item, is_item = known(ids, given.V), (ids >= 0) & (ids < given.V)
            a = _products(given.x, row, is_row, given.w, item, is_item, BLOCK_M, BLOCK_K, DOT_D, FLAGS)
        a += offsets_of(ids, given, FLAGS)[None, :]
        counts = (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        m, z, num = next_state(a, counts, m, z, num, FLAGS.KIND)
    loss, of_target, scale, pivot = row_terms(s, log_q, m, z, num, FLAGS.KIND, BETA)
    tl.store(loss_ptr + row, loss, mask=is_row)
    tl.store(states.of_target + row, of_target, mask=is_row)
    tl.store(states.scale + row, scale, mask=is_row)
    tl.store(states.pivot + row, pivot, mask=is_row)


@triton.jit
def tiles_backward_x_kernel(
    given,
    lists_ptr,
    pieces,
    weight_ptr,
    states,
    dx_ptr,
    K,
    FLAGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0)
    begin, end = tl.load(pieces.begins + piece), tl.load(pieces.ends + piece)
    first_id_ptr = lists_ptr + tl.load(pieces.lists + piece) * K
    d = tl.arange(0, FLAGS.BLOCK_D)
    row, is_row, x, target = _piece_rows(given, pieces, begin, end, d, FLAGS, BLOCK_M)
    pivot = tl.load(states.pivot + row, mask=is_row, other=0.0)
    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dx = tl.zeros([BLOCK_M, BLOCK_D], dtype=FLAGS.ACC)
    for start in range(0, tl.where(begin < end, K, 0), BLOCK_K):
        ids = _list_ids(first_id_ptr, start, K, BLOCK_K)
        if DOT_D == FLAGS.BLOCK_D:
            a = tl.dot(x, _vectors_t(ids, given, d, FLAGS), input_precision="ieee", out_dtype=FLAGS.ACC)
        else:
            item, is_item = known(ids, given.V), (ids >= 0) & (ids < given.V)
            a = _products(given.x, row, is_row, given.w, item, is_item, BLOCK_M, BLOCK_K, DOT_D, FLAGS)
        a += offsets_of(ids, given, FLAGS)[None, :]
        counts = is_row[:, None] & (ids != -1)[None, :] & (ids[None, :] != target[:, None])
        e = coefficients(a, counts, pivot[:, None], FLAGS.KIND)
        dx = tl.dot(
            e,
            item_vectors(ids, given, d, FLAGS).to(FLAGS.ACC),
            dx,
            input_precision=FLAGS.PRECISION,
            out_dtype=FLAGS.ACC,
        )
    weight = tl.load(weight_ptr + row, mask=is_row, other=0.0).to(FLAGS.ACC)
    dx *= (weight * tl.load(states.scale + row, mask=is_row, other=0.0))[:, None]
    here = is_row[:, None] & (d < FLAGS.D)[None, :]
    of_item = item_vectors(target, given, d, FLAGS).to(FLAGS.ACC)
    dx += of_item * (weight * tl.load(states.of_target + row, mask=is_row, other=0.0))[:, None]
    tl.store(dx_ptr + row[:, None] * FLAGS.D + d[None, :], dx, mask=here)


@triton.jit
def tiles_backward_w_kernel(
    given,
    lists_ptr,
    pieces,
    weight_ptr,
    states,
    dv_ptr,
    dbias_ptr,
    K,
    FLAGS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT_D: tl.constexpr,
):
    piece = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(pieces.begins + piece), tl.load(pieces.ends + piece)
    start_k = tl.program_id(1) * BLOCK_K
    k, d = start_k + tl.arange(0, BLOCK_K), tl.arange(0, FLAGS.BLOCK_D)
    ids = _list_ids(lists_ptr + tl.load(pieces.lists + piece) * K, start_k, K, BLOCK_K)
    vectors = item_vectors(ids, given, d, FLAGS)
    offsets = offsets_of(ids, given, FLAGS)
    BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
    dv = tl.zeros([BLOCK_K, BLOCK_D], dtype=FLAGS.ACC)
    dbias = tl.zeros([BLOCK_K], dtype=FLAGS.ACC)
    for start in range(begin, end, BLOCK_M):
        row, is_row, x, target = _piece_rows(given, pieces, start, end, d, FLAGS, BLOCK_M)
        if DOT_D == FLAGS.BLOCK_D:
            here = is_row[None, :] & (d < FLAGS.D)[:, None]
            x_t = tl.load(given.x + row[None, :] * FLAGS.D + d[:, None], mask=here, other=0.0)
            a = tl.dot(vectors, x_t, input_precision="ieee", out_dtype=FLAGS.ACC)  # [K, M]
        else:
            item, is_item = known(ids, given.V), (ids >= 0) & (ids < given.V)
            a = _products(given.w, item, is_item, given.x, row, is_row, BLOCK_K, BLOCK_M, DOT_D, FLAGS)
        a += offsets[:, None]
        counts = is_row[None, :] & (ids != -1)[:, None] & (ids[:, None] != target[None, :])
        pivot = tl.load(states.pivot + row, mask=is_row, other=0.0)
        factor = tl.load(weight_ptr + row, mask=is_row, other=0.0).to(FLAGS.ACC)
        factor *= tl.load(states.scale + row, mask=is_row, other=0.0)
        e = coefficients(a, counts, pivot[None, :], FLAGS.KIND) * factor[None, :]
        dv = tl.dot(e, x.to(FLAGS.ACC), dv, input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
        dbias += tl.sum(e, axis=1)
    slot = piece * K + k
    tl.store(dv_ptr + slot[:, None] * FLAGS.D + d[None, :], dv, mask=(k < K)[:, None] & (d < FLAGS.D)[None, :])
    tl.store(dbias_ptr + slot, dbias, mask=k < K)


@triton.jit
def _products(
    left_ptr,
    left,
    is_left,
    right_ptr,
    right,
    is_right,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    DOT_D: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """[left, right]: products of rows of two tables, DOT_D columns at a time.

    A product in full float32 has no tensor cores, and each thread holds whole rows of what it multiplies.
    """
    a = tl.zeros([BLOCK_LEFT, BLOCK_RIGHT], dtype=FLAGS.ACC)
    for start in range(0, FLAGS.BLOCK_D, DOT_D):
        d = start + tl.arange(0, DOT_D)
        here, there = is_left[:, None] & (d < FLAGS.D)[None, :], is_right[None, :] & (d < FLAGS.D)[:, None]
        rows = tl.load(left_ptr + left[:, None] * FLAGS.D + d[None, :], mask=here, other=0.0)
        columns = tl.load(right_ptr + right[None, :] * FLAGS.D + d[:, None], mask=there, other=0.0)
        a = tl.dot(rows, columns, a, input_precision="ieee", out_dtype=FLAGS.ACC)
    return a


@triton.jit
def _piece_rows(given, pieces, begin, end, d, FLAGS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Numbers [M], whether there is a row, vectors [M, D] and targets [M] of the rows from `begin`."""
    place = begin + tl.arange(0, BLOCK_M)
    is_row = place < end
    row = tl.load(pieces.rows + place, mask=is_row, other=0)
    here = is_row[:, None] & (d < FLAGS.D)[None, :]
    x = tl.load(given.x + row[:, None] * FLAGS.D + d[None, :], mask=here, other=0.0)
    return row, is_row, x, tl.load(given.target + row, mask=is_row, other=0)


@triton.jit
def _list_ids(first_id_ptr, start, K, BLOCK_K: tl.constexpr):
    """Ids [K] of a list from `start`, -1 behind the last."""
    k = start + tl.arange(0, BLOCK_K)
    return tl.load(first_id_ptr + k, mask=k < K, other=-1)


@triton.jit
def _vectors_t(ids, given, d, FLAGS: tl.constexpr):
    """[D, K]: `item_vectors`, transposed."""
    here = ((ids >= 0) & (ids < given.V))[None, :] & (d < FLAGS.D)[:, None]
    return tl.load(given.w + known(ids, given.V)[None, :] * FLAGS.D + d[:, None], mask=here, other=0.0)

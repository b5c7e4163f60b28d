# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What the backward kernels of attention share: transposed tiles of weights and dscore, and sums by time bucket."""

import triton
import triton.language as tl

from recsys.kernels.attention.triton_path.triton_scores import (
    LOG2_E,
    bucket_range,
    gap_of,
    is_kept,
    pos_bias,
    silu,
    silu_slope,
    time_bias,
    time_bucket,
)


@triton.jit
def transposed_gradients(
    k_tile,
    v_tile,
    q_tile,
    grad_out,
    lse,
    delta,
    ts_m,
    ts_n,
    rows,
    columns,
    seen,
    distance,
    h,
    terms,
    dropout,
    scale,
    silu_share,
    MASKED: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """Kept weights and dscore (BLOCK_N, BLOCK_M) of loaded keys against loaded queries."""
    scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC) * scale
    if FLAGS.HAS_TIME:
        least, most = bucket_range(ts_m, ts_n, terms, FLAGS)
        scores += time_bias(gap_of(ts_m[None, :], ts_n[:, None]), least, most, terms, h, FLAGS)
    if FLAGS.HAS_POS:
        scores += pos_bias(distance, terms, h)
    grad_weights = tl.dot(v_tile, tl.trans(grad_out), input_precision=FLAGS.PRECISION, out_dtype=FLAGS.ACC)
    if FLAGS.IS_SILU:
        kept_weights = silu(scores) * silu_share
        grad_scores = silu_slope(scores) * grad_weights * silu_share
        if MASKED:
            kept_weights = tl.where(seen, kept_weights, 0.0)
            grad_scores = tl.where(seen, grad_scores, 0.0)
    else:
        if MASKED:
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.exp2((scores - lse[None, :]) * LOG2_E)
        kept_weights = weights
        if FLAGS.HAS_DROPOUT:
            kept = is_kept(rows[None, :], columns[:, None], dropout.threshold)
            kept_weights = tl.where(kept, weights / dropout.kept_share, 0.0)
            grad_weights = tl.where(kept, grad_weights / dropout.kept_share, 0.0)
        grad_scores = weights * (grad_weights - delta[None, :])
    return kept_weights, grad_scores


@triton.jit
def add_to_buckets(grad_time, grad_scores, gap, least, most, terms, BLOCK_B: tl.constexpr, FLAGS: tl.constexpr):
    """grad_time (BLOCK_B,) with the tile's sums, bucket by bucket of those that it holds."""
    b = tl.arange(0, BLOCK_B)
    if least == most:
        grad_time += tl.where(b == least, tl.sum(tl.sum(grad_scores, 1), 0), 0.0)
    else:
        bucket = time_bucket(gap, terms, FLAGS)
        for at in range(least, most + 1):
            of_bucket = tl.where(bucket == at, grad_scores, 0.0)
            grad_time += tl.where(b == at, tl.sum(tl.sum(of_bucket, 1), 0), 0.0)
    return grad_time

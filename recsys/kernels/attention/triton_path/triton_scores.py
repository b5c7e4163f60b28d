# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""What the attention kernels share: rows of a jagged tensor, biases, dropout, and the two kinds of weights.

Buckets are found by integers alone, so every device finds those of `bias.py`. A tile first finds the buckets of its
shortest and its longest time; where they are one, as between far blocks, its bias is one number. Dropout is the hash of
`dropout.py`, worked out in the kernel.
"""

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def rows_of(x, start, h):
    """Pointer to the first row of a sequence that begins at `start`, in head `h`; both int64."""
    return x.ptr + start * x.t + h * x.h


@triton.jit
def load_rows(ptr, rows, in_rows, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """(BLOCK_R, BLOCK_D) of the rows `rows` (BLOCK_R,), 0 outside."""
    d = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + d[None, :]
    if MASKED:
        return tl.load(at, mask=in_rows[:, None] & (d < WIDTH)[None, :], other=0.0)
    if BLOCK_D == WIDTH:
        return tl.load(at)
    return tl.load(at, mask=(d < WIDTH)[None, :], other=0.0)


@triton.jit
def load_each(ptr, rows, in_rows, other, MASKED: tl.constexpr):
    """(BLOCK_R,), `other` outside."""
    if MASKED:
        return tl.load(ptr + rows.to(tl.int64), mask=in_rows, other=other)
    return tl.load(ptr + rows.to(tl.int64))


@triton.jit
def load_lse(ptr, rows, in_rows, MASKED: tl.constexpr):
    """(BLOCK_R,) lse, infinite outside and for a query that sees no key: its weights are 0."""
    lse = load_each(ptr, rows, in_rows, float("inf"), MASKED)
    if MASKED:
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
    return lse


@triton.jit
def store_rows(ptr, values, rows, in_rows, stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (BLOCK_R, BLOCK_D)."""
    d = tl.arange(0, BLOCK_D)
    at = ptr + rows.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, values.to(ptr.dtype.element_ty), mask=in_rows[:, None] & (d < WIDTH)[None, :])


@triton.jit
def time_bucket(gap, terms, FLAGS: tl.constexpr):
    """Bucket of |t_i - t_j| (uint32): how many thresholds are at or below it; with STEPS > 0 by its logarithm."""
    if FLAGS.STEPS > 0:
        gap = tl.where(gap == 0, gap + 1, gap)
        exponent = (gap.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        exponent = tl.minimum(exponent, 31)
        exponent = tl.where((gap >> exponent.to(tl.uint32)) == 0, exponent - 1, exponent)  # float32 had rounded up
        bucket = exponent * FLAGS.STEPS
        if FLAGS.STEPS > 1:
            fraction = gap << (31 - exponent).to(tl.uint32)  # in [2^31, 2^32)
            if FLAGS.STEPS == 4:
                bucket += (fraction >= 2553802834).to(tl.int32)  # 2^(31 + 1/4), rounded up
                bucket += (fraction >= 3611622603).to(tl.int32)  # 2^(31 + 3/4)
            bucket += (fraction >= 3037000500).to(tl.int32)  # 2^(31 + 1/2)
        return tl.minimum(bucket, terms.num_buckets - 1)
    wide = gap.to(tl.int64)
    bucket = (wide * 0).to(tl.int32)
    for i in range(FLAGS.BISECTIONS):
        probe = bucket + (1 << (FLAGS.BISECTIONS - 1 - i))
        is_there = probe < terms.num_buckets
        threshold = tl.load(terms.thresholds + probe - 1, mask=is_there, other=0)
        bucket = tl.where(is_there & (threshold <= wide), probe, bucket)
    return bucket


@triton.jit
def gap_of(a, b):
    """|a - b| of int32 times, as uint32."""
    return (tl.maximum(a, b) - tl.minimum(a, b)).to(tl.uint32, bitcast=True)


@triton.jit
def bucket_range(ts_a, ts_b, terms, FLAGS: tl.constexpr):
    """Lowest and highest bucket of a tile between the times (BLOCK,) and (BLOCK,)."""
    min_a, max_a, min_b, max_b = tl.min(ts_a, 0), tl.max(ts_a, 0), tl.min(ts_b, 0), tl.max(ts_b, 0)
    overlap = (min_a <= max_b) & (min_b <= max_a)
    between = tl.where(min_a > max_b, gap_of(min_a, max_b), gap_of(min_b, max_a))
    shortest = tl.where(overlap, between * 0, between)
    is_across = max_a.to(tl.int64) - min_b > max_b.to(tl.int64) - min_a
    longest = tl.where(is_across, gap_of(max_a, min_b), gap_of(max_b, min_a))
    return time_bucket(shortest, terms, FLAGS), time_bucket(longest, terms, FLAGS)


@triton.jit
def time_bias(gap, least, most, terms, h, FLAGS: tl.constexpr):
    """Bias of head `h` for a tile of gaps whose buckets lie in [least, most]."""
    table_ptr = terms.time_table + h * terms.time_h
    if least == most:
        value = tl.load(table_ptr + least)
        bias = (gap * 0).to(table_ptr.dtype.element_ty) + value
    else:
        bias = tl.load(table_ptr + time_bucket(gap, terms, FLAGS))
    return bias


@triton.jit
def pos_bias(distance, terms, h):
    """Bias of head `h` for distances, place of the query minus key; the table holds those from -reach to reach."""
    reach = terms.reach
    table_ptr = terms.pos_table + h * terms.pos_h
    return tl.load(table_ptr + tl.minimum(tl.maximum(distance, -reach), reach) + reach)


@triton.jit
def _mix(word):
    """The finalizer of MurmurHash3."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def dropout_hash(state, sequence, places, h):
    """int32 hash of the places of a sequence, as in `dropout.py`; `state` (int32) belongs to seed and side."""
    of_sequence = _mix((state ^ sequence).to(tl.uint32, bitcast=True))
    of_place = _mix(of_sequence ^ (places.to(tl.uint32) * 0x2545F491))
    of_head = h.to(tl.uint32) * 0x632BE5AB
    return (_mix(of_place ^ of_head) | 1).to(tl.int32, bitcast=True)


@triton.jit
def is_kept(rows, columns, threshold):
    """True where the weight is not dropped; hashes (BLOCK,) that broadcast to a tile."""
    return rows * columns >= threshold


@triton.jit
def silu(x):
    """x * sigmoid(x)."""
    return x / (1.0 + tl.exp2(-x * LOG2_E))


@triton.jit
def silu_slope(x):
    """Derivative of `silu`."""
    s = 1.0 / (1.0 + tl.exp2(-x * LOG2_E))
    return s * (1.0 + x * (1.0 - s))

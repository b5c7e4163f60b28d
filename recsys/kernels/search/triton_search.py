# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""search_topk in Triton.

Scan: a program takes some candidates of one sequence and head and a span of its behaviours, and keeps their best in
registers. A score and its column are one int64, the score's bits in an order-preserving form above the column counted
from behind, so the largest integer is the best score and of equal ones the lowest column. A tile in which nothing beats
the worst kept so far costs no more than its product. Merge: a program a candidate joins what the spans kept.

float64 (in the interpreter alone) leaves no room for the column: there the integers are the scores', columns travel
beside them, and ranks are counted. Columns only grow as tiles go by, so of equal scores the kept ones stand first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.launch import launch_of
from recsys.kernels.search.bundles import Flags, scored_rows
from recsys.kernels.search.scoring import Scoring

PROGRAMS = 528  # wanted of a scan: four for each of 132 multiprocessors
MAX_SPLITS = 64
MIN_KEPT = 32


def search_topk_triton(
    scoring: Scoring, offsets_c: Tensor, offsets_k: Tensor, max_c: int, max_k: int, top_k: int
) -> tuple[Tensor, Tensor]:
    """idx and score, (Tc, H, K) each."""
    (Tc, H, _), device = scoring.q.shape, scoring.q.device
    idx = torch.empty(Tc, H, top_k, dtype=torch.int32, device=device)
    score = torch.empty(Tc, H, top_k, dtype=scoring.dtype, device=device)
    if idx.numel() == 0:
        return idx, score
    flags = Flags.of(scoring)
    kept = max(MIN_KEPT, triton.next_power_of_2(top_k))
    is_wide = max(flags.BLOCK_D, flags.BLOCK_D2) > 64
    launch = dict(launch_of("search_topk", "scan", device, kept=kept, is_grouped=max_c > 1, is_wide=is_wide))
    blocks_c = triton.cdiv(max_c, launch["BLOCK_M"])
    num_sequences = offsets_c.shape[0] - 1
    splits, span = _splits(num_sequences * blocks_c * H, max_k, launch.pop("MIN_SPAN"), launch["BLOCK_N"])
    keys = torch.empty(Tc, H, splits, kept, dtype=torch.int64, device=device)
    is_double = scoring.dtype == torch.float64
    columns = torch.empty(keys.shape if is_double else 1, dtype=torch.int32, device=device)
    types = {"LOG_KEPT": _log2(kept), "IS_DOUBLE": is_double}
    _scan_kernel[(num_sequences * blocks_c * H * splits,)](
        *scored_rows(scoring),
        offsets_c,
        offsets_k,
        keys,
        columns,
        H,
        blocks_c,
        splits,
        span,
        scoring.scale,
        scoring.scale2,
        FLAGS=flags,
        LOG_N=_log2(launch["BLOCK_N"]),
        **types,
        **launch,
    )
    merge = launch_of("search_topk", "merge", device, kept=kept)
    _merge_kernel[(Tc * H,)](keys, columns, idx, score, top_k, splits, **types, **merge)
    return idx, score


def _log2(power: int) -> int:
    return power.bit_length() - 1


def _splits(programs: int, max_k: int, min_span: int, block: int) -> tuple[int, int]:
    """Into how many spans histories are cut so that the device is busy, and how long one is."""
    splits = max(1, min(-(-PROGRAMS // programs), max_k // min_span, MAX_SPLITS))
    span = -(-max(max_k, 1) // (splits * block)) * block
    return -(-max(max_k, 1) // span), span


@triton.jit(do_not_specialize=["blocks_c", "splits", "span"])
def _scan_kernel(
    q,
    k,
    q2,
    k2,
    bias,
    offsets_c_ptr,
    offsets_k_ptr,
    keys_ptr,
    columns_ptr,
    H,
    blocks_c,
    splits,
    span,
    scale,
    scale2,
    FLAGS: tl.constexpr,
    LOG_KEPT: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    LOG_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    KEPT: tl.constexpr = 1 << LOG_KEPT
    pid = tl.program_id(0).to(tl.int64)
    split, pid = pid % splits, pid // splits
    h, pid = pid % H, pid // H
    block, b = pid % blocks_c, pid // blocks_c
    start_c, end_c = tl.load(offsets_c_ptr + b), tl.load(offsets_c_ptr + b + 1)
    start_k, end_k = tl.load(offsets_k_ptr + b), tl.load(offsets_k_ptr + b + 1)
    first_c = start_c + block * BLOCK_M
    if first_c < end_c:
        c = first_c + tl.arange(0, BLOCK_M)  # int64
        in_c = c < end_c
        num_k = (end_k - start_k).to(tl.int32)
        low, high = (split * span).to(tl.int32), tl.minimum((split + 1) * span, end_k - start_k).to(tl.int32)
        q_at = q.ptr + h * q.h + c[:, None] * q.t
        k_at = k.ptr + start_k * k.t + h * k.h
        q2_at = q2.ptr + h * q2.h + c[:, None] * q2.t
        k2_at = k2.ptr + start_k * k2.t + h * k2.h
        bias_at = bias.ptr + start_k * bias.t + h * bias.h
        empty: tl.constexpr = -(2**63)
        best = tl.full((BLOCK_M, KEPT), empty, tl.int64)
        best_column = tl.full((BLOCK_M, KEPT), 0, tl.int32)
        worst = tl.full((BLOCK_M,), empty, tl.int64)
        for start in range(low, high, BLOCK_N):
            column = start + tl.arange(0, BLOCK_N)
            in_k = column < num_k
            scores = scale * _products(
                q_at, k_at, k.t, in_c, column, in_k, FLAGS.D, FLAGS.BLOCK_D, FLAGS.ACC, BLOCK_M, BLOCK_N
            )
            if FLAGS.BLOCK_D2 > 0:
                scores += scale2 * _products(
                    q2_at, k2_at, k2.t, in_c, column, in_k, FLAGS.D2, FLAGS.BLOCK_D2, FLAGS.ACC, BLOCK_M, BLOCK_N
                )
            if FLAGS.HAS_BIAS:
                scores += tl.load(bias_at + column.to(tl.int64) * bias.t, mask=in_k, other=0.0).to(FLAGS.ACC)[None, :]
            keys = _ordered(scores, IS_DOUBLE)
            if not IS_DOUBLE:
                keys = (keys << 32) | (0x7FFFFFFF - column).to(tl.int64)[None, :]
            keys = tl.where(in_c[:, None] & in_k[None, :], keys, empty)
            if tl.max((keys > worst[:, None]).to(tl.int32)) > 0:
                if IS_DOUBLE:
                    best, best_column = _merge_ranks(
                        best, best_column, keys, tl.broadcast_to(column[None, :], (BLOCK_M, BLOCK_N)), KEPT, BLOCK_N
                    )
                else:  # what is kept ascends and what is added descends, so the larger of each pair are the best
                    best = _in_order(tl.maximum(best, _largest(keys, LOG_N, LOG_KEPT)), LOG_KEPT, 1)
                worst = tl.min(best, axis=1)
        j = tl.arange(0, KEPT)
        at = ((c * H + h) * splits + split)[:, None] * KEPT + j[None, :]
        tl.store(keys_ptr + at, best, mask=in_c[:, None])
        if IS_DOUBLE:
            tl.store(columns_ptr + at, best_column, mask=in_c[:, None])


@triton.jit
def _products(
    q_ptr,
    k_ptr,
    k_row,
    in_c,
    column,
    in_k,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) products of the candidates' rows, at q_ptr (BLOCK_M, 1), with a tile of behaviours."""
    row = column.to(tl.int64) * k_row
    LINE: tl.constexpr = 1024 // k_ptr.dtype.element_ty.primitive_bitwidth  # 128 bytes of a row at a time
    DOT_D: tl.constexpr = BLOCK_D if BLOCK_D < LINE else LINE
    products = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for first_d in range(0, BLOCK_D, DOT_D):
        d = first_d + tl.arange(0, DOT_D)
        q = tl.load(q_ptr + d[None, :], mask=in_c[:, None] & (d < WIDTH)[None, :], other=0.0)
        if BLOCK_M == 1:
            k = tl.load(k_ptr + row[:, None] + d[None, :], mask=in_k[:, None] & (d < WIDTH)[None, :], other=0.0)
            products += tl.sum(k.to(ACC) * q.to(ACC), axis=1)[None, :]
        else:
            k = tl.load(k_ptr + row[None, :] + d[:, None], mask=in_k[None, :] & (d < WIDTH)[:, None], other=0.0)
            products = tl.dot(q, k, products, input_precision="ieee", out_dtype=ACC)
    return products


@triton.jit
def _ordered(scores, IS_DOUBLE: tl.constexpr):
    """int64 in the order of the scores; NaN before -inf, above the smallest integer of its width."""
    scores = tl.where(scores == 0.0, 0.0, scores)
    is_nan = scores != scores
    if IS_DOUBLE:
        bits = scores.to(tl.int64, bitcast=True)
        return tl.where(is_nan, -(2**63) + 1, bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF))
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(is_nan, -(2**31) + 1, bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _largest(keys, LOG_N: tl.constexpr, LOG_KEPT: tl.constexpr):
    """The largest 2^LOG_KEPT of each row of 2^LOG_N, descending: blocks are sorted, then halved two by two."""
    for log_size in tl.static_range(1, LOG_KEPT + 1):
        keys = _in_order(keys, log_size, 0)
    for _ in tl.static_range(LOG_N - LOG_KEPT):  # neighbours run against each other, so their maxima are bitonic
        blocks = tl.reshape(keys, (keys.shape[0], keys.shape[1] >> (LOG_KEPT + 1), 2, 1 << LOG_KEPT))
        keys = tl.reshape(tl.max(blocks, axis=2), (keys.shape[0], keys.shape[1] // 2))
        keys = _in_order(keys, LOG_KEPT, 0)
    return keys


@triton.jit
def _in_order(keys, LOG_SIZE: tl.constexpr, FIRST_ASCENDS: tl.constexpr):
    """Bitonic blocks of 2^LOG_SIZE sorted, each against the direction of the one before."""
    for step in tl.static_range(LOG_SIZE):
        keys = _exchange(keys, LOG_SIZE, LOG_SIZE - 1 - step, FIRST_ASCENDS)
    return keys


@triton.jit
def _exchange(keys, LOG_SIZE: tl.constexpr, LOG_STRIDE: tl.constexpr, FIRST_ASCENDS: tl.constexpr):
    """Keys 2^LOG_STRIDE apart swapped where they stand against the direction of their block."""
    M: tl.constexpr = keys.shape[0]
    N: tl.constexpr = keys.shape[1]
    PAIRS: tl.constexpr = N >> (LOG_STRIDE + 1)
    pairs = tl.reshape(keys, (M, PAIRS, 2, 1 << LOG_STRIDE))
    other = tl.sum(pairs, axis=2, keep_dims=True) - pairs  # wraps, and wraps back
    block = tl.arange(0, PAIRS) >> (LOG_SIZE - LOG_STRIDE - 1)
    ascends = (block + FIRST_ASCENDS) % 2
    takes_larger = tl.arange(0, 2)[None, None, :, None] == ascends[None, :, None, None]
    keys = tl.where(takes_larger, tl.maximum(pairs, other), tl.minimum(pairs, other))
    return tl.reshape(keys, (M, N))


@triton.jit
def _merge_ranks(best, best_column, keys, column, KEPT: tl.constexpr, BLOCK_N: tl.constexpr):
    """The best KEPT of both in descending order; of equal keys those of `best`, then the earlier of `keys`."""
    j, i = tl.arange(0, KEPT), tl.arange(0, BLOCK_N)
    ahead = keys[:, None, :] > best[:, :, None]  # (M, KEPT, N)
    best_rank = j[None, :] + tl.sum(ahead.to(tl.int32), axis=2)
    rank = tl.sum((best[:, :, None] >= keys[:, None, :]).to(tl.int32), axis=1)
    is_earlier = (keys[:, None, :] == keys[:, :, None]) & (i[None, None, :] < i[None, :, None])
    rank += tl.sum((is_earlier | (keys[:, None, :] > keys[:, :, None])).to(tl.int32), axis=2)
    from_best = (best_rank[:, :, None] == j[None, None, :]).to(tl.int64)  # (M, KEPT, KEPT)
    from_keys = (rank[:, :, None] == j[None, None, :]).to(tl.int64)  # (M, N, KEPT)
    merged = tl.sum(from_best * best[:, :, None], axis=1) + tl.sum(from_keys * keys[:, :, None], axis=1)
    merged_column = tl.sum(from_best.to(tl.int32) * best_column[:, :, None], axis=1)
    return merged, merged_column + tl.sum(from_keys.to(tl.int32) * column[:, :, None], axis=1)


@triton.jit(do_not_specialize=["splits"])
def _merge_kernel(
    keys_ptr,
    columns_ptr,
    idx_ptr,
    score_ptr,
    top_k,
    splits,
    LOG_KEPT: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
):
    KEPT: tl.constexpr = 1 << LOG_KEPT
    row = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, KEPT)
    at = row * splits * KEPT
    if IS_DOUBLE:
        best, column = tl.load(keys_ptr + at + j)[None, :], tl.load(columns_ptr + at + j)[None, :]
        for split in range(1, splits):
            more = at + split * KEPT + j
            best, column = _merge_ranks(
                best, column, tl.load(keys_ptr + more)[None, :], tl.load(columns_ptr + more)[None, :], KEPT, KEPT
            )
        best, column = tl.reshape(best, (KEPT,)), tl.reshape(column, (KEPT,))
        is_out = best == -(2**63)
        is_nan = best == -(2**63) + 1
        score = (best ^ ((best >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
        place = j
    else:
        best = tl.load(keys_ptr + at + j)[None, :]  # ascending
        for split in range(1, splits):
            more = tl.load(keys_ptr + at + split * KEPT + (KEPT - 1 - j))[None, :]  # descending
            best = _in_order(tl.maximum(best, more), LOG_KEPT, 1)
        best = tl.reshape(best, (KEPT,))
        high = (best >> 32).to(tl.int32)
        column = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)
        is_out = high == -(2**31)
        is_nan = high == -(2**31) + 1
        score = (high ^ ((high >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
        place = KEPT - 1 - j
    score = tl.where(is_out, float("-inf"), tl.where(is_nan, float("nan"), score))
    column = tl.where(is_out, -1, column)
    at = row * top_k + place
    tl.store(idx_ptr + at, column, mask=place < top_k)
    tl.store(score_ptr + at, score, mask=place < top_k)

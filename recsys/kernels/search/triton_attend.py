# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""topk_attend in Triton: a program a candidate and head, which gathers its kept rows.

The backward pass stores each kept behaviour's weight and the gradient of its score, then sums per behaviour: the kept
rows are sorted, and the program that finds the first of a run of equal rows adds up the run, in order, without atomics.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.bundles import Rows, unit_stride
from recsys.kernels.launch import launch_of
from recsys.kernels.search.bundles import Flags, scored_rows
from recsys.kernels.search.scoring import Scoring
from recsys.kernels.search.torch_attend import Gradients


def attend_triton(scoring: Scoring, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """out (Tc, H, Dv) and the log of the softmax denominator (Tc, H)."""
    Tc, H, K = rows.shape
    out = torch.empty(Tc, H, v.shape[2], dtype=v.dtype, device=v.device)
    lse = torch.empty(Tc, H, dtype=scoring.dtype, device=v.device)
    if Tc * H:
        _forward_kernel[(Tc * H,)](
            *scored_rows(scoring),
            Rows.of(unit_stride(v)),
            rows,
            out,
            lse,
            H,
            K,
            scoring.scale,
            scoring.scale2,
            **_constants("forward", scoring, v),
        )
    return out, lse


def attend_backward_triton(
    scoring: Scoring, v: Tensor, rows: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> Gradients:
    """Gradients of (out * grad).sum()."""
    (Tc, H, K), s = rows.shape, scoring
    grad, scored = grad.contiguous(), scored_rows(s)
    dq, dq2, dk, dk2, dv, dbias = (
        v.new_empty(0) if x is None else x.new_zeros(x.shape) for x in (s.q, s.q2, s.k, s.k2, v, s.k_bias)
    )
    weights, rates = (torch.empty(Tc, H, K, dtype=s.dtype, device=v.device) for _ in range(2))
    if Tc * H:
        _backward_kernel[(Tc * H,)](
            *scored,
            Rows.of(unit_stride(v)),
            rows,
            out,
            lse,
            grad,
            weights,
            rates,
            dq,
            dq2,
            H,
            K,
            s.scale,
            s.scale2,
            **_constants("backward", s, v),
        )
    if rows.numel():
        heads = torch.arange(H, device=rows.device)[:, None]
        flat = torch.where(rows >= 0, rows * H + heads, -1).flatten()
        runs, order = flat.sort(stable=True)
        ends = torch.searchsorted(runs, runs, right=True)
        q, _, q2, _, _ = scored
        _rows_kernel[(len(runs),)](
            q,
            q2,
            grad,
            runs,
            order,
            ends,
            weights,
            rates,
            dk,
            dk2,
            dv,
            dbias,
            H,
            K,
            s.scale,
            s.scale2,
            **_constants("rows", s, v),
        )
    return dq, dk, dv, dq2, dk2, dbias


def _constants(kernel: str, scoring: Scoring, v: Tensor) -> dict[str, Any]:
    """What the kernel is compiled for, and the options of its launch."""
    flags = Flags.of(scoring, v)
    width = max(flags.BLOCK_D, flags.BLOCK_D2, flags.BLOCK_DV)
    return {"FLAGS": flags, **launch_of("topk_attend", kernel, v.device, width=width)}


@triton.jit
def _forward_kernel(
    q,
    k,
    q2,
    k2,
    bias,
    v,
    rows_ptr,
    out_ptr,
    lse_ptr,
    H,
    K,
    scale,
    scale2,
    FLAGS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)  # c * H + h
    c, h = pair // H, pair % H
    q_row = _row(q.ptr + c * q.t + h * q.h, FLAGS.D, FLAGS.BLOCK_D, FLAGS.ACC)
    q2_row = q_row
    if FLAGS.BLOCK_D2 > 0:
        q2_row = _row(q2.ptr + c * q2.t + h * q2.h, FLAGS.D2, FLAGS.BLOCK_D2, FLAGS.ACC)
    highest = tl.full((), float("-inf"), FLAGS.ACC)
    total = tl.full((), 0.0, FLAGS.ACC)
    BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
    out = tl.zeros((BLOCK_DV,), FLAGS.ACC)
    for start in range(0, K, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        row = tl.load(rows_ptr + pair * K + j, mask=j < K, other=-1)
        is_kept = row >= 0
        scores, _, _ = _scores(q_row, q2_row, k, k2, bias, row, is_kept, h, scale, scale2, FLAGS)
        scores = tl.where(is_kept, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=0))
        pivot = tl.where(higher == float("-inf"), 0.0, higher)  # keeps -inf - -inf out
        shrink = tl.exp(highest - pivot)
        weights = tl.exp(scores - pivot)
        total = total * shrink + tl.sum(weights, axis=0)
        v_rows = _gathered(v.ptr + h * v.h, row, v.t, FLAGS.DV, FLAGS.BLOCK_DV, FLAGS.ACC)
        out = out * shrink + tl.sum(weights[:, None] * v_rows, axis=0)
        highest = higher
    is_empty = highest == float("-inf")
    out = out / tl.where(is_empty, 1.0, total)
    lse = tl.where(is_empty, float("-inf"), highest + tl.log(tl.where(is_empty, 1.0, total)))
    d = tl.arange(0, FLAGS.BLOCK_DV)
    tl.store(out_ptr + pair * FLAGS.DV + d, out, mask=d < FLAGS.DV)
    tl.store(lse_ptr + pair, lse)


@triton.jit
def _backward_kernel(
    q,
    k,
    q2,
    k2,
    bias,
    v,
    rows_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    weights_ptr,
    rates_ptr,
    dq_ptr,
    dq2_ptr,
    H,
    K,
    scale,
    scale2,
    FLAGS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    c, h = pair // H, pair % H
    q_row = _row(q.ptr + c * q.t + h * q.h, FLAGS.D, FLAGS.BLOCK_D, FLAGS.ACC)
    dq = tl.zeros_like(q_row)
    q2_row, dq2 = q_row, dq
    if FLAGS.BLOCK_D2 > 0:
        q2_row = _row(q2.ptr + c * q2.t + h * q2.h, FLAGS.D2, FLAGS.BLOCK_D2, FLAGS.ACC)
        dq2 = tl.zeros_like(q2_row)
    grad = _row(grad_ptr + pair * FLAGS.DV, FLAGS.DV, FLAGS.BLOCK_DV, FLAGS.ACC)
    mean_rate = tl.sum(grad * _row(out_ptr + pair * FLAGS.DV, FLAGS.DV, FLAGS.BLOCK_DV, FLAGS.ACC), axis=0)
    lse = tl.load(lse_ptr + pair)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    for start in range(0, K, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        row = tl.load(rows_ptr + pair * K + j, mask=j < K, other=-1)
        is_kept = row >= 0
        scores, k_rows, k2_rows = _scores(q_row, q2_row, k, k2, bias, row, is_kept, h, scale, scale2, FLAGS)
        weights = tl.exp(tl.where(is_kept, scores, float("-inf")) - lse)
        v_rows = _gathered(v.ptr + h * v.h, row, v.t, FLAGS.DV, FLAGS.BLOCK_DV, FLAGS.ACC)
        rates = weights * (tl.sum(v_rows * grad[None, :], axis=1) - mean_rate)
        dq += tl.sum(rates[:, None] * k_rows, axis=0)
        if FLAGS.BLOCK_D2 > 0:
            dq2 += tl.sum(rates[:, None] * k2_rows, axis=0)
        tl.store(weights_ptr + pair * K + j, weights, mask=j < K)
        tl.store(rates_ptr + pair * K + j, rates, mask=j < K)
    d = tl.arange(0, FLAGS.BLOCK_D)
    tl.store(dq_ptr + pair * FLAGS.D + d, dq * scale, mask=d < FLAGS.D)
    if FLAGS.BLOCK_D2 > 0:
        d2 = tl.arange(0, FLAGS.BLOCK_D2)
        tl.store(dq2_ptr + pair * FLAGS.D2 + d2, dq2 * scale2, mask=d2 < FLAGS.D2)


@triton.jit
def _scores(q_row, q2_row, k, k2, bias, row, is_kept, h, scale, scale2, FLAGS: tl.constexpr):
    """Scores of kept behaviours; their rows of k and k2, or of k twice."""
    k_rows = _gathered(k.ptr + h * k.h, row, k.t, FLAGS.D, FLAGS.BLOCK_D, FLAGS.ACC)
    scores = tl.sum(k_rows * q_row[None, :], axis=1) * scale
    k2_rows = k_rows
    if FLAGS.BLOCK_D2 > 0:
        k2_rows = _gathered(k2.ptr + h * k2.h, row, k2.t, FLAGS.D2, FLAGS.BLOCK_D2, FLAGS.ACC)
        scores += tl.sum(k2_rows * q2_row[None, :], axis=1) * scale2
    if FLAGS.HAS_BIAS:
        scores += tl.load(bias.ptr + row * bias.t + h * bias.h, mask=is_kept, other=0.0).to(FLAGS.ACC)
    return scores, k_rows, k2_rows


@triton.jit
def _rows_kernel(
    q,
    q2,
    grad_ptr,
    runs_ptr,
    order_ptr,
    ends_ptr,
    weights_ptr,
    rates_ptr,
    dk_ptr,
    dk2_ptr,
    dv_ptr,
    dbias_ptr,
    H,
    K,
    scale,
    scale2,
    FLAGS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    row = tl.load(runs_ptr + first)  # row * H + h of what the run adds up to, -1 for nothing
    before = tl.load(runs_ptr + first - 1, mask=first > 0, other=-1)
    if row != before:
        end = tl.load(ends_ptr + first)
        h = row % H
        BLOCK_D: tl.constexpr = FLAGS.BLOCK_D
        dk = tl.zeros((BLOCK_D,), FLAGS.ACC)
        BLOCK_DV: tl.constexpr = FLAGS.BLOCK_DV
        dv = tl.zeros((BLOCK_DV,), FLAGS.ACC)
        dbias = tl.full((), 0.0, FLAGS.ACC)
        dk2 = dk
        if FLAGS.BLOCK_D2 > 0:
            BLOCK_D2: tl.constexpr = FLAGS.BLOCK_D2
            dk2 = tl.zeros((BLOCK_D2,), FLAGS.ACC)
        for start in range(first, end, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            kept = tl.load(order_ptr + j, mask=j < end, other=0)  # place of (candidate, head, kept)
            pair = tl.where(j < end, kept // K, -1)
            c = tl.where(j < end, pair // H, -1)
            weights = tl.load(weights_ptr + kept, mask=j < end, other=0.0)
            rates = tl.load(rates_ptr + kept, mask=j < end, other=0.0)
            grads = _gathered(grad_ptr, pair, FLAGS.DV, FLAGS.DV, FLAGS.BLOCK_DV, FLAGS.ACC)
            dv += tl.sum(weights[:, None] * grads, axis=0)
            q_rows = _gathered(q.ptr + h * q.h, c, q.t, FLAGS.D, FLAGS.BLOCK_D, FLAGS.ACC)
            dk += tl.sum(rates[:, None] * q_rows, axis=0)
            if FLAGS.BLOCK_D2 > 0:
                q2_rows = _gathered(q2.ptr + h * q2.h, c, q2.t, FLAGS.D2, FLAGS.BLOCK_D2, FLAGS.ACC)
                dk2 += tl.sum(rates[:, None] * q2_rows, axis=0)
            dbias += tl.sum(rates, axis=0)
        d, d_v = tl.arange(0, FLAGS.BLOCK_D), tl.arange(0, FLAGS.BLOCK_DV)
        tl.store(dk_ptr + row * FLAGS.D + d, dk * scale, mask=d < FLAGS.D)
        tl.store(dv_ptr + row * FLAGS.DV + d_v, dv, mask=d_v < FLAGS.DV)
        if FLAGS.BLOCK_D2 > 0:
            d2 = tl.arange(0, FLAGS.BLOCK_D2)
            tl.store(dk2_ptr + row * FLAGS.D2 + d2, dk2 * scale2, mask=d2 < FLAGS.D2)
        if FLAGS.HAS_BIAS:
            tl.store(dbias_ptr + row, dbias)


@triton.jit
def _row(ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    d = tl.arange(0, BLOCK)
    return tl.load(ptr + d, mask=d < WIDTH, other=0.0).to(ACC)


@triton.jit
def _gathered(ptr, row, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """(N, BLOCK) rows, zero for those below 0; `row` is int64."""
    d = tl.arange(0, BLOCK)
    at = ptr + row[:, None] * stride + d[None, :]
    return tl.load(at, mask=(row >= 0)[:, None] & (d < WIDTH)[None, :], other=0.0).to(ACC)

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

from recsys.kernels.launch import launch_of
from recsys.kernels.search.scoring import Scoring
from recsys.kernels.search.torch_attend import Gradients
from recsys.kernels.search.triton_search import unit_stride


def attend_triton(scoring: Scoring, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """out (Tc, H, Dv) and the log of the softmax denominator (Tc, H)."""
    Tc, H, K = rows.shape
    out = torch.empty(Tc, H, v.shape[2], dtype=v.dtype, device=v.device)
    lse = torch.empty(Tc, H, dtype=scoring.dtype, device=v.device)
    if Tc * H:
        call = _Call(scoring, v)
        _forward_kernel[(Tc * H,)](
            *call.tensors, rows, out, lse, *call.strides, *call.sizes(K), *call.scales, **call.constants("forward")
        )
    return out, lse


def attend_backward_triton(
    scoring: Scoring, v: Tensor, rows: Tensor, out: Tensor, lse: Tensor, grad: Tensor
) -> Gradients:
    """Gradients of (out * grad).sum()."""
    (Tc, H, K), s = rows.shape, scoring
    call, grad = _Call(s, v), grad.contiguous()
    dq, dq2 = (None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (s.q, s.q2))
    dk, dv, dk2, dbias = (
        None if x is None else torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (s.k, v, s.k2, s.k_bias)
    )
    assert dq is not None
    assert dk is not None
    assert dv is not None
    weights, rates = (torch.empty(Tc, H, K, dtype=s.dtype, device=v.device) for _ in range(2))
    if Tc * H:
        _backward_kernel[(Tc * H,)](
            *call.tensors,
            rows,
            out,
            lse,
            grad,
            weights,
            rates,
            dq,
            dq if dq2 is None else dq2,
            *call.strides,
            *call.sizes(K),
            *call.scales,
            **call.constants("backward"),
        )
    if rows.numel():
        heads = torch.arange(H, device=rows.device)[:, None]
        flat = torch.where(rows >= 0, rows * H + heads, -1).flatten()
        runs, order = flat.sort(stable=True)
        ends = torch.searchsorted(runs, runs, right=True)
        _rows_kernel[(len(runs),)](
            call.tensors[0],
            call.tensors[2],
            grad,
            runs,
            order,
            ends,
            weights,
            rates,
            dk,
            dk if dk2 is None else dk2,
            dv,
            dk if dbias is None else dbias,
            *call.q_strides,
            *call.sizes(K),
            *call.scales,
            **call.constants("rows"),
        )
    dq2, dk2, dbias = (v.new_empty(0) if x is None else x for x in (dq2, dk2, dbias))
    return dq, dk, dv, dq2, dk2, dbias


class _Call:
    """What the kernels are called with, in the order of their signatures."""

    def __init__(self, scoring: Scoring, v: Tensor) -> None:
        s = scoring
        q, k, v = unit_stride(s.q), unit_stride(s.k), unit_stride(v)
        q2, k2 = (q, k) if s.q2 is None or s.k2 is None else (unit_stride(s.q2), unit_stride(s.k2))
        bias = k if s.k_bias is None else s.k_bias
        self.tensors = (q, k, q2, k2, bias, v)
        self.strides = tuple(stride for x in self.tensors for stride in x.stride()[:2])
        self.q_strides = (*q.stride()[:2], *q2.stride()[:2])
        self.scales = (s.scale, s.scale2)
        self._widths = (q.shape[2], 0 if s.q2 is None else q2.shape[2], v.shape[2])
        self._is_double = s.dtype == torch.float64
        self._has_bias = s.k_bias is not None

    def sizes(self, K: int) -> tuple[int, ...]:
        """H, K, D, D2, Dv."""
        return self.tensors[0].shape[1], K, *self._widths

    def constants(self, kernel: str) -> dict[str, Any]:
        """The constexprs and launch options."""
        width, width2, width_v = (max(16, triton.next_power_of_2(x)) if x else 0 for x in self._widths)
        launch = launch_of("topk_attend", kernel, self.tensors[0].device, width=max(width, width2, width_v))
        return {
            "WIDTH": width,
            "WIDTH2": width2,
            "WIDTH_V": width_v,
            "HAS_BIAS": self._has_bias,
            "ACC": tl.float64 if self._is_double else tl.float32,
            **launch,
        }


@triton.jit
def _forward_kernel(
    q_ptr,
    k_ptr,
    q2_ptr,
    k2_ptr,
    bias_ptr,
    v_ptr,
    rows_ptr,
    out_ptr,
    lse_ptr,
    q_row,
    q_head,
    k_row,
    k_head,
    q2_row,
    q2_head,
    k2_row,
    k2_head,
    bias_row,
    bias_head,
    v_row,
    v_head,
    H,
    K,
    D,
    D2,
    DV,
    scale,
    scale2,
    WIDTH: tl.constexpr,
    WIDTH2: tl.constexpr,
    WIDTH_V: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)  # c * H + h
    c, h = pair // H, pair % H
    q = _row(q_ptr + c * q_row + h * q_head, D, WIDTH, ACC)
    if WIDTH2 > 0:
        q2 = _row(q2_ptr + c * q2_row + h * q2_head, D2, WIDTH2, ACC)
    highest = tl.full((), float("-inf"), ACC)
    total = tl.full((), 0.0, ACC)
    out = tl.zeros((WIDTH_V,), ACC)
    for start in range(0, K, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        row = tl.load(rows_ptr + pair * K + j, mask=j < K, other=-1)
        is_kept = row >= 0
        scores = tl.sum(_gathered(k_ptr + h * k_head, row, k_row, D, WIDTH, ACC) * q[None, :], axis=1) * scale
        if WIDTH2 > 0:
            k2 = _gathered(k2_ptr + h * k2_head, row, k2_row, D2, WIDTH2, ACC)
            scores += tl.sum(k2 * q2[None, :], axis=1) * scale2
        if HAS_BIAS:
            scores += tl.load(bias_ptr + row * bias_row + h * bias_head, mask=is_kept, other=0.0).to(ACC)
        scores = tl.where(is_kept, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=0))
        pivot = tl.where(higher == float("-inf"), 0.0, higher)  # keeps -inf - -inf out
        shrink = tl.exp(highest - pivot)
        weights = tl.exp(scores - pivot)
        total = total * shrink + tl.sum(weights, axis=0)
        v = _gathered(v_ptr + h * v_head, row, v_row, DV, WIDTH_V, ACC)
        out = out * shrink + tl.sum(weights[:, None] * v, axis=0)
        highest = higher
    is_empty = highest == float("-inf")
    out = out / tl.where(is_empty, 1.0, total)
    lse = tl.where(is_empty, float("-inf"), highest + tl.log(tl.where(is_empty, 1.0, total)))
    d = tl.arange(0, WIDTH_V)
    tl.store(out_ptr + pair * DV + d, out, mask=d < DV)
    tl.store(lse_ptr + pair, lse)


@triton.jit
def _backward_kernel(
    q_ptr,
    k_ptr,
    q2_ptr,
    k2_ptr,
    bias_ptr,
    v_ptr,
    rows_ptr,
    out_ptr,
    lse_ptr,
    grad_ptr,
    weights_ptr,
    rates_ptr,
    dq_ptr,
    dq2_ptr,
    q_row,
    q_head,
    k_row,
    k_head,
    q2_row,
    q2_head,
    k2_row,
    k2_head,
    bias_row,
    bias_head,
    v_row,
    v_head,
    H,
    K,
    D,
    D2,
    DV,
    scale,
    scale2,
    WIDTH: tl.constexpr,
    WIDTH2: tl.constexpr,
    WIDTH_V: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    c, h = pair // H, pair % H
    q = _row(q_ptr + c * q_row + h * q_head, D, WIDTH, ACC)
    dq = tl.zeros((WIDTH,), ACC)
    if WIDTH2 > 0:
        q2 = _row(q2_ptr + c * q2_row + h * q2_head, D2, WIDTH2, ACC)
        dq2 = tl.zeros((WIDTH2,), ACC)
    grad = _row(grad_ptr + pair * DV, DV, WIDTH_V, ACC)
    mean_rate = tl.sum(grad * _row(out_ptr + pair * DV, DV, WIDTH_V, ACC), axis=0)
    lse = tl.load(lse_ptr + pair)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    for start in range(0, K, BLOCK_K):
        j = start + tl.arange(0, BLOCK_K)
        row = tl.load(rows_ptr + pair * K + j, mask=j < K, other=-1)
        is_kept = row >= 0
        k = _gathered(k_ptr + h * k_head, row, k_row, D, WIDTH, ACC)
        scores = tl.sum(k * q[None, :], axis=1) * scale
        if WIDTH2 > 0:
            k2 = _gathered(k2_ptr + h * k2_head, row, k2_row, D2, WIDTH2, ACC)
            scores += tl.sum(k2 * q2[None, :], axis=1) * scale2
        if HAS_BIAS:
            scores += tl.load(bias_ptr + row * bias_row + h * bias_head, mask=is_kept, other=0.0).to(ACC)
        weights = tl.where(is_kept, tl.exp(scores - lse), 0.0)
        v = _gathered(v_ptr + h * v_head, row, v_row, DV, WIDTH_V, ACC)
        rates = weights * (tl.sum(v * grad[None, :], axis=1) - mean_rate)
        dq += tl.sum(rates[:, None] * k, axis=0)
        if WIDTH2 > 0:
            dq2 += tl.sum(rates[:, None] * k2, axis=0)
        tl.store(weights_ptr + pair * K + j, weights, mask=j < K)
        tl.store(rates_ptr + pair * K + j, rates, mask=j < K)
    d = tl.arange(0, WIDTH)
    tl.store(dq_ptr + pair * D + d, dq * scale, mask=d < D)
    if WIDTH2 > 0:
        d2 = tl.arange(0, WIDTH2)
        tl.store(dq2_ptr + pair * D2 + d2, dq2 * scale2, mask=d2 < D2)


@triton.jit
def _rows_kernel(
    q_ptr,
    q2_ptr,
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
    q_row,
    q_head,
    q2_row,
    q2_head,
    H,
    K,
    D,
    D2,
    DV,
    scale,
    scale2,
    WIDTH: tl.constexpr,
    WIDTH2: tl.constexpr,
    WIDTH_V: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    row = tl.load(runs_ptr + first)  # row * H + h of what the run adds up to, -1 for nothing
    before = tl.load(runs_ptr + first - 1, mask=first > 0, other=-1)
    if row != before:
        end = tl.load(ends_ptr + first)
        h = row % H
        dk = tl.zeros((WIDTH,), ACC)
        dv = tl.zeros((WIDTH_V,), ACC)
        dbias = tl.full((), 0.0, ACC)
        if WIDTH2 > 0:
            dk2 = tl.zeros((WIDTH2,), ACC)
        for start in range(first, end, BLOCK_K):
            j = start + tl.arange(0, BLOCK_K)
            kept = tl.load(order_ptr + j, mask=j < end, other=0)  # place of (candidate, head, kept)
            pair = tl.where(j < end, kept // K, -1)
            c = tl.where(j < end, pair // H, -1)
            weights = tl.load(weights_ptr + kept, mask=j < end, other=0.0)
            rates = tl.load(rates_ptr + kept, mask=j < end, other=0.0)
            dv += tl.sum(weights[:, None] * _gathered(grad_ptr, pair, DV, DV, WIDTH_V, ACC), axis=0)
            dk += tl.sum(rates[:, None] * _gathered(q_ptr + h * q_head, c, q_row, D, WIDTH, ACC), axis=0)
            if WIDTH2 > 0:
                dk2 += tl.sum(rates[:, None] * _gathered(q2_ptr + h * q2_head, c, q2_row, D2, WIDTH2, ACC), axis=0)
            dbias += tl.sum(rates, axis=0)
        d, d_v = tl.arange(0, WIDTH), tl.arange(0, WIDTH_V)
        tl.store(dk_ptr + row * D + d, dk * scale, mask=d < D)
        tl.store(dv_ptr + row * DV + d_v, dv, mask=d_v < DV)
        if WIDTH2 > 0:
            d2 = tl.arange(0, WIDTH2)
            tl.store(dk2_ptr + row * D2 + d2, dk2 * scale2, mask=d2 < D2)
        if HAS_BIAS:
            tl.store(dbias_ptr + row, dbias)


@triton.jit
def _row(ptr, D, WIDTH: tl.constexpr, ACC: tl.constexpr):
    d = tl.arange(0, WIDTH)
    return tl.load(ptr + d, mask=d < D, other=0.0).to(ACC)


@triton.jit
def _gathered(ptr, row, stride, D, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """(N, WIDTH) rows, zero for those below 0; `row` is int64."""
    d = tl.arange(0, WIDTH)
    at = ptr + row[:, None] * stride + d[None, :]
    return tl.load(at, mask=(row >= 0)[:, None] & (d < D)[None, :], other=0.0).to(ACC)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""SiLU attention over jagged causal sequences as HSTU states it, in plain Triton: a rival that is timed beside ours.

    out_i = sum over j <= i of silu(alpha <q_i, k_j>) / max_len v_j

Its grid covers every sequence up to the longest, and programs past an end leave at once. A backward program takes a
block of keys and meets all later queries. `parallel`: one program a block, dq summed by float32 atomics. `serial`: one
program a sequence and head, dq summed in memory in its own dtype, block after block.

Paper: Zhai et al. 2024, arXiv:2402.17152.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Config = dict[str, int]
# What is tried on a GPU before timing, in place of an autotuner.
CONFIGS: tuple[Config, ...] = (
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
)


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    max_len: int,
    alpha: float,
    *,
    is_parallel: bool = True,
    forward: Config = CONFIGS[1],
    backward: Config = CONFIGS[2],
) -> Tensor:
    """Attention of (T, H, D) tensors, D a power of two from 16 on; contiguous."""
    out: Tensor = _Hstu.apply(q, k, v, offsets, (max_len, alpha, is_parallel, forward, backward))
    return out


class _Hstu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, settings: Any) -> Tensor:
        max_len, alpha, _, config, _ = settings
        ctx.save_for_backward(q, k, v, offsets)
        ctx.settings = settings
        out = torch.empty_like(v)
        num_heads, width = q.shape[1:]
        grid = (triton.cdiv(max(max_len, 1), config["BLOCK_M"]), (len(offsets) - 1) * num_heads)
        _forward_kernel[grid](
            q,
            k,
            v,
            out,
            offsets,
            q.stride(0),
            alpha,
            1.0 / max(max_len, 1),
            num_heads,
            WIDTH=width,
            **_constants(q, config),
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, offsets = ctx.saved_tensors
        max_len, alpha, is_parallel, _, config = ctx.settings
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        sums = torch.float32 if is_parallel and q.dtype != torch.float64 else q.dtype
        grad_q = torch.zeros(q.shape, dtype=sums, device=q.device)
        num_heads, width = q.shape[1:]
        blocks = triton.cdiv(max(max_len, 1), config["BLOCK_N"]) if is_parallel else 1
        _backward_kernel[blocks, (len(offsets) - 1) * num_heads](
            q,
            k,
            v,
            grad_out.contiguous(),
            grad_q,
            grad_k,
            grad_v,
            offsets,
            q.stride(0),
            alpha,
            1.0 / max(max_len, 1),
            num_heads,
            WIDTH=width,
            PARALLEL=is_parallel,
            **_constants(q, config),
        )
        return grad_q.to(q.dtype), grad_k, grad_v, None, None


def _constants(q: Tensor, config: Config) -> dict[str, Any]:
    wide = q.dtype == torch.float64
    return {
        **config,
        "ACC": tl.float64 if wide else tl.float32,
        "PRECISION": "tf32" if q.element_size() == 2 else "ieee",
    }


@triton.jit
def _forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    offsets_ptr,
    stride,
    alpha,
    share,
    num_heads,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, head = tl.program_id(1) // num_heads, (tl.program_id(1) % num_heads).to(tl.int64)
    start = tl.load(offsets_ptr + sequence)
    length = (tl.load(offsets_ptr + sequence + 1) - start).to(tl.int32)
    start_m = tl.program_id(0) * BLOCK_M
    if start_m >= length:
        return
    m, d = start_m + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    base = start * stride + head * WIDTH
    at_m = base + m.to(tl.int64)[:, None] * stride + d[None, :]
    q = tl.load(q_ptr + at_m, mask=m[:, None] < length, other=0.0)
    acc = tl.zeros((BLOCK_M, WIDTH), ACC)
    for start_n in range(0, tl.minimum(start_m + BLOCK_M, length), BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        at_n = base + n.to(tl.int64)[:, None] * stride + d[None, :]
        k = tl.load(k_ptr + at_n, mask=n[:, None] < length, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * alpha
        weights = scores / (1.0 + tl.exp(-scores)) * share
        weights = tl.where((m[:, None] >= n[None, :]) & (n[None, :] < length), weights, 0.0)
        v = tl.load(v_ptr + at_n, mask=n[:, None] < length, other=0.0)
        acc += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION, out_dtype=ACC)
    tl.store(out_ptr + at_m, acc.to(q.dtype), mask=m[:, None] < length)


@triton.jit
def _backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_out_ptr,
    grad_q_ptr,
    grad_k_ptr,
    grad_v_ptr,
    offsets_ptr,
    stride,
    alpha,
    share,
    num_heads,
    WIDTH: tl.constexpr,
    PARALLEL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    sequence, head = tl.program_id(1) // num_heads, (tl.program_id(1) % num_heads).to(tl.int64)
    start = tl.load(offsets_ptr + sequence)
    length = (tl.load(offsets_ptr + sequence + 1) - start).to(tl.int32)
    base = start * stride + head * WIDTH
    first, end = 0, length
    if PARALLEL:
        first = tl.program_id(0) * BLOCK_N
        end = tl.minimum(first + BLOCK_N, length)
    d = tl.arange(0, WIDTH)
    for start_n in range(first, end, BLOCK_N):
        n = start_n + tl.arange(0, BLOCK_N)
        at_n = base + n.to(tl.int64)[:, None] * stride + d[None, :]
        k = tl.load(k_ptr + at_n, mask=n[:, None] < length, other=0.0)
        v = tl.load(v_ptr + at_n, mask=n[:, None] < length, other=0.0)
        grad_k, grad_v = tl.zeros((BLOCK_N, WIDTH), ACC), tl.zeros((BLOCK_N, WIDTH), ACC)
        for start_m in range(start_n // BLOCK_M * BLOCK_M, length, BLOCK_M):
            m = start_m + tl.arange(0, BLOCK_M)
            at_m = base + m.to(tl.int64)[:, None] * stride + d[None, :]
            q = tl.load(q_ptr + at_m, mask=m[:, None] < length, other=0.0)
            grad_out = tl.load(grad_out_ptr + at_m, mask=m[:, None] < length, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC) * alpha  # (BLOCK_N, BLOCK_M)
            gate = 1.0 / (1.0 + tl.exp(-scores))
            seen = (m[None, :] >= n[:, None]) & (m[None, :] < length)
            weights = tl.where(seen, scores * gate * share, 0.0)
            grad_v += tl.dot(weights.to(v.dtype), grad_out, input_precision=PRECISION, out_dtype=ACC)
            grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION, out_dtype=ACC)
            slope = gate * (1.0 + scores * (1.0 - gate)) * share
            grad_scores = (tl.where(seen, grad_weights * slope, 0.0) * alpha).to(k.dtype)
            grad_k += tl.dot(grad_scores, q, input_precision=PRECISION, out_dtype=ACC)
            grad_q = tl.dot(tl.trans(k), grad_scores, input_precision=PRECISION, out_dtype=ACC)  # (WIDTH, BLOCK_M)
            at_q = grad_q_ptr + base + m.to(tl.int64)[None, :] * stride + d[:, None]
            if PARALLEL:
                tl.atomic_add(at_q, grad_q, mask=m[None, :] < length, sem="relaxed")
            else:
                before = tl.load(at_q, mask=m[None, :] < length, other=0.0)
                tl.store(at_q, (before + grad_q).to(q.dtype), mask=m[None, :] < length)
        tl.store(grad_k_ptr + at_n, grad_k.to(k.dtype), mask=n[:, None] < length)
        tl.store(grad_v_ptr + at_n, grad_v.to(v.dtype), mask=n[:, None] < length)

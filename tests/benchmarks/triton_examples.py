# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Small kernels, good and bad, on which the tools around kernels are tried."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.launch import launch_of


@triton.jit
def _gram_kernel(x_ptr, out_ptr, T, stride, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    d = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + rows[:, None] * stride + d[None, :], mask=rows[:, None] < T, other=0.0)
    sums = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for begin in range(0, T, BLOCK_N):
        others = (begin + tl.arange(0, BLOCK_N)).to(tl.int64)
        y = tl.load(x_ptr + others[:, None] * stride + d[None, :], mask=others[:, None] < T, other=0.0)
        scores = tl.dot(x, tl.trans(y), input_precision="ieee")
        sums = tl.dot(scores.to(y.dtype), y, sums, input_precision="ieee")
    tl.store(out_ptr + rows[:, None] * stride + d[None, :], sums.to(x.dtype), mask=rows[:, None] < T)


def gram(x: Tensor) -> Tensor:
    """`x x^T x` of (T, D): an op with a launch table `gram`, kernel `forward`, key `width`."""
    out = torch.empty_like(x)
    row = launch_of("gram", "forward", x.device, width=x.shape[1])
    grid = (triton.cdiv(len(x), row["BLOCK_M"]),)
    _gram_kernel[grid](x, out, x.shape[0], x.stride(0), WIDTH=x.shape[1], **row)
    return out


@triton.jit
def narrow_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + rows * stride, mask=rows < T, other=0.0)
    tl.store(out_ptr + rows, x, mask=rows < T)


@triton.jit
def late_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (rows * stride).to(tl.int64), mask=rows < T, other=0.0)
    tl.store(out_ptr + rows, x, mask=rows < T)


@triton.jit
def looped_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    place = tl.program_id(0) * stride
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(0, T):
        if place < T:
            total += tl.load(x_ptr + place + tl.arange(0, BLOCK))
            place += 1
        else:
            place += 2
    tl.store(out_ptr + tl.arange(0, BLOCK), total)


@triton.jit
def while_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    place = tl.program_id(0) * stride
    total = tl.zeros((BLOCK,), tl.float32)
    while place < T:
        total += tl.load(x_ptr + place + tl.arange(0, BLOCK))
        place += BLOCK
    tl.store(out_ptr + tl.arange(0, BLOCK), total)


@triton.jit
def wide_row_kernel(x_ptr, out_ptr, T, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + rows * WIDTH, mask=rows < T, other=0.0)
    tl.store(out_ptr + rows, x, mask=rows < T)


@triton.jit
def row_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = rows.to(tl.int64) * stride + (tl.arange(0, BLOCK) * 4) % 16
    last = T * stride  # of no offset
    x = tl.load(x_ptr + place, mask=(rows < T) & (rows < last), other=0.0)
    tl.store(out_ptr + rows, x, mask=rows < T)


@triton.jit
def atomic_kernel(x_ptr, out_ptr, T, stride, BLOCK: tl.constexpr):
    rows = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    x = tl.load(x_ptr + rows * stride, mask=rows < T, other=0.0)
    tl.atomic_add(out_ptr + rows % 4, x, mask=rows < T)


@triton.jit
def bucket_kernel(x_ptr, out_ptr, T, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(x_ptr + rows, mask=rows < T, other=0.0).to(tl.int32, bitcast=True)
    place = ((bits >> SHIFT) - 3) * 4
    x = tl.load(out_ptr + place, mask=rows < T, other=0.0)
    tl.store(out_ptr + rows, x, mask=rows < T)

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Backward kernel of linear_cross_entropy: gradients of `w` and `bias`, each element written once.

A program owns a block of items and a range of the rows that count. It forms logits transposed, (items, rows), so that
the gradient of the logits is the left operand of the product with `x` as it lies in registers.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["lse_ptr", "hit_ptr"])
def _item_grads_kernel(
    x_ptr,  # (N, D), rows that count come first
    w_ptr,  # (V, D)
    bias_ptr,  # (V,)
    target_ptr,  # (N,) int32
    count_ptr,  # (1,) int32
    lse_ptr,  # (N,)
    hit_ptr,  # (N,), gradient of the loss for the target's logit
    rate_ptr,  # (N,)
    unit_ptr,  # (1,), what a rate of 1 stands for
    grad_w_ptr,  # (S, V, D)
    grad_bias_ptr,  # (S, V)
    stride_w,
    scale,
    spread,
    V,
    splits,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SMOOTHING: tl.constexpr,
    NEEDS_W: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    items = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    in_items, in_d = items < V, d < D
    at_item = items.to(tl.int64)[:, None] * stride_w + d[None, :]
    w = tl.load(w_ptr + at_item, mask=in_items[:, None] & in_d[None, :], other=0.0)  # [BLOCK_N, BLOCK_D]
    offset = tl.zeros((BLOCK_N,), ACC)
    if HAS_BIAS:
        offset = tl.load(bias_ptr + items, mask=in_items, other=0.0).to(ACC) * scale * LOG2_E
    offset = tl.where(in_items, offset, float("-inf"))
    grad_w = tl.zeros((BLOCK_N, BLOCK_D), ACC)
    grad_bias = tl.zeros((BLOCK_N,), ACC)
    count = tl.load(count_ptr)
    share = tl.cdiv(tl.cdiv(count, splits), BLOCK_M) * BLOCK_M
    start = split * share
    for first in range(start, tl.minimum(count, start + share), BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        in_rows = rows < count
        at_row = rows.to(tl.int64)[:, None] * D + d[None, :]
        x = tl.load(x_ptr + at_row, mask=in_rows[:, None] & in_d[None, :], other=0.0)  # [BLOCK_M, BLOCK_D]
        target = tl.load(target_ptr + rows, mask=in_rows, other=-1)
        lse = tl.load(lse_ptr + rows, mask=in_rows, other=float("inf"))
        hit = tl.load(hit_ptr + rows, mask=in_rows, other=0.0)
        rate = tl.load(rate_ptr + rows, mask=in_rows, other=0.0)
        s = tl.dot(w, tl.trans(x), input_precision="ieee", out_dtype=ACC)  # [BLOCK_N, BLOCK_M]
        p = tl.exp2(s * (scale * LOG2_E) + offset[:, None] - lse[None, :])
        grad = tl.where(items[:, None] == target[None, :], hit[None, :], p)
        if HAS_SMOOTHING:
            grad -= spread
        grad *= rate[None, :]
        if NEEDS_W:
            grad_w = tl.dot(grad.to(x.dtype), x, grad_w, input_precision="ieee", out_dtype=ACC)
        if NEEDS_BIAS:
            grad_bias += tl.sum(grad, 1)
    unit = tl.load(unit_ptr)
    at_split = split.to(tl.int64) * V
    if NEEDS_W:
        at_grad = (at_split + items)[:, None] * D + d[None, :]
        mask = in_items[:, None] & in_d[None, :]
        tl.store(grad_w_ptr + at_grad, (grad_w * unit).to(grad_w_ptr.dtype.element_ty), mask=mask)
    if NEEDS_BIAS:
        grad_bias = (grad_bias * unit).to(grad_bias_ptr.dtype.element_ty)
        tl.store(grad_bias_ptr + at_split + items, grad_bias, mask=in_items)

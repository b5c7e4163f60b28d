"""The Triton path of linear_cross_entropy: what is launched, on which memory.

Nothing here waits for the device: rows that count are brought to the front by a stable sort, their number stays there,
and programs beyond it end at once. Few rows leave most of a GPU idle, so their items are cut into ranges (forward), and
few items' rows are (backward); the parts are added in their order.

Dims: N rows, V items, D width, S parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys.kernels.backend import is_interpreting
from recsys.kernels.bundles import unit_stride
from recsys.kernels.launch import compile_target, launch_of
from recsys.kernels.linear_cross_entropy.operands import Operands, Upstream

OP = "linear_cross_entropy"
MAX_WIDTH = 256
PROGRAMS_A_PROCESSOR = 4
PROCESSORS = 132  # where there is no GPU to ask
HALF_RANGE = 2.0**15  # of float16, for the largest gradient of a logit


@dataclass(frozen=True)
class _Rows:
    """Rows that count first: their numbers, how many count, their targets (-1 where not in [0, V)), their vectors."""

    order: Tensor  # (N,) int64
    count: Tensor  # (1,) int32
    target: Tensor  # (N,) int32
    x: Tensor  # (N, D)


def fused_forward(operands: Operands, needs_slope: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (N,), their gradients for x (N, D) or (0, D), and (2, N) that fused_backward reads."""
    x, w, bias, target, ignore_index, logit_scale, label_smoothing = operands[:7]
    dtype, acc = _dtypes(operands)
    (N, D), V = x.shape, len(w)
    losses, slope = x.new_empty(N, dtype=acc), x.new_empty((N if needs_slope else 0, D), dtype=acc)
    state = x.new_empty((2, N), dtype=acc)
    if N == 0:
        return losses, slope, state
    x, w, bias = unit_stride(x), unit_stride(w), _contiguous(bias)
    rows = _rows(x, target, ignore_index, V, dtype)
    launch = _launch("forward", x.device, D, dtype)
    blocks = _cdiv(N, launch["BLOCK_M"])
    tiles = _cdiv(_cdiv(V, launch["BLOCK_N"]), _num_parts(blocks, _cdiv(V, launch["BLOCK_N"]), x.device))
    parts = _cdiv(_cdiv(V, launch["BLOCK_N"]), tiles)
    top, total = x.new_empty((parts, N), dtype=acc), x.new_empty((parts, N), dtype=acc)
    partial = x.new_empty((parts if needs_slope else 0, N, D), dtype=acc)
    shared: dict[str, Any] = {
        "D": D,
        "HAS_BIAS": bias is not None,
        "NEEDS_SLOPE": needs_slope,
        "ACC": _triton_dtype(acc),
        "BLOCK_D": _block_width(D),
    }
    from recsys.kernels.linear_cross_entropy.triton_forward import _combine_kernel, _partials_kernel

    narrow_w = w.to(dtype)
    _partials_kernel[(blocks, parts)](
        rows.x, narrow_w, bias, rows.target, rows.count, top, total, partial,
        narrow_w.stride(0), logit_scale, N, V, tiles, **shared, **launch,
    )  # fmt: skip
    launch = _launch("combine", x.device, D, acc)
    mean_w, mean_bias = _means(w, bias, acc) if label_smoothing > 0 else (None, None)
    _combine_kernel[(_cdiv(N, launch["BLOCK_M"]),)](
        x, w, bias, target.contiguous(), rows.order, rows.count, mean_w, mean_bias, top, total, partial,
        losses, slope, state[0], state[1], x.stride(0), w.stride(0), logit_scale, label_smoothing, N, V, parts,
        HAS_SMOOTHING=label_smoothing > 0, **shared, **launch,
    )  # fmt: skip
    return losses, slope, state


def fused_backward(up: Upstream, operands: Operands) -> tuple[Tensor, Tensor]:
    """Gradients of sum(grad * losses) for w (V, D) and bias (V,); empty where not needed."""
    grad, state, needs_w, needs_bias = up
    x, w, bias, target, ignore_index, logit_scale, label_smoothing = operands[:7]
    dtype, acc = _dtypes(operands)
    D, V = x.shape[1], len(w)
    bias_dtype = acc if bias is None else bias.dtype
    if len(x) == 0 or not (needs_w or needs_bias):
        return w.new_zeros((V if needs_w else 0, D)), w.new_zeros(V if needs_bias else 0, dtype=bias_dtype)
    launch = _launch("backward", x.device, D, dtype)
    blocks = _cdiv(V, launch["BLOCK_N"])
    parts = _num_parts(blocks, _cdiv(len(x), launch["BLOCK_M"]), x.device)
    grad_w = w.new_empty((parts, V if needs_w else 0, D), dtype=w.dtype if parts == 1 else acc)
    grad_bias = w.new_empty((parts, V if needs_bias else 0), dtype=bias_dtype if parts == 1 else acc)
    narrow_w, bias, rows = unit_stride(w).to(dtype), _contiguous(bias), _rows(x, target, ignore_index, V, dtype)
    rates, unit = _rates((grad * logit_scale).to(acc).index_select(0, rows.order), rows.count, dtype)
    from recsys.kernels.linear_cross_entropy.triton_backward import _item_grads_kernel

    _item_grads_kernel[(blocks, parts)](
        rows.x, narrow_w, bias, rows.target, rows.count, state[0], state[1], rates, unit, grad_w, grad_bias,
        narrow_w.stride(0), logit_scale, label_smoothing / V, V, parts, D=D, HAS_BIAS=bias is not None,
        HAS_SMOOTHING=label_smoothing > 0, NEEDS_W=needs_w, NEEDS_BIAS=needs_bias, ACC=_triton_dtype(acc),
        BLOCK_D=_block_width(D), **launch,
    )  # fmt: skip
    return _added(grad_w, w.dtype), _added(grad_bias, bias_dtype)


def _added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)


def _dtypes(operands: Operands) -> tuple[torch.dtype, torch.dtype]:
    """Of the products, and of sums and results."""
    if operands.is_narrow and is_interpreting() and compile_target() is None:
        raise RuntimeError(
            "logits_dtype=torch.bfloat16 with TRITON_INTERPRET=1: the interpreter computes bfloat16 wrongly; "
            "use logits_dtype=None, or RECSYS_KERNELS=torch"
        )
    wide = torch.promote_types(operands.x.dtype, operands.w.dtype)
    return torch.bfloat16 if operands.is_narrow else wide, operands.result_dtype


def _rows(x: Tensor, target: Tensor, ignore_index: int, num_items: int, dtype: torch.dtype) -> _Rows:
    counts = target != ignore_index
    order = torch.sort((~counts).to(torch.uint8), stable=True).indices
    is_item = (target >= 0) & (target < num_items)
    narrow = torch.where(is_item, target, -1).to(torch.int32).index_select(0, order)
    return _Rows(order, counts.sum(dtype=torch.int32).view(1), narrow, x.index_select(0, order).to(dtype))


def _rates(rates: Tensor, count: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows' factors and what a factor of 1 stands for: in float16 they are spread over its range."""
    if dtype != torch.float16:
        return rates, rates.new_ones(1)
    is_row = torch.arange(len(rates), device=rates.device) < count
    peak = torch.where(is_row, rates.abs(), 0.0).amax().clamp(min=torch.finfo(rates.dtype).tiny).view(1)
    return rates / peak * HALF_RANGE, peak / HALF_RANGE


def _means(w: Tensor, bias: Tensor | None, acc: torch.dtype) -> tuple[Tensor, Tensor | None]:
    mean_bias = None if bias is None else bias.sum(dtype=acc).div_(len(w)).view(1)
    return w.sum(0, dtype=acc).div_(len(w)), mean_bias


def _num_parts(blocks: int, tiles: int, device: torch.device) -> int:
    """Such that there are programs enough for the GPU, and at least one tile for each."""
    return max(1, min(tiles, PROGRAMS_A_PROCESSOR * _num_processors(device) // blocks))


def _num_processors(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return PROCESSORS if compile_target() is not None else 1


def _launch(kernel: str, device: torch.device, width: int, dtype: torch.dtype) -> Mapping[str, int]:
    return launch_of(OP, kernel, device, width=_block_width(width), bytes=dtype.itemsize)


def _block_width(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length()) if width else 16


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)

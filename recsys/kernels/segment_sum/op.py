"""Sums of rows by number, in an order that depends on nothing but the numbers.

    out[s] = scale * sum_{r, k: ids[r, k] = s} weights[r, k] x[r] + add_to[s]

It is what the gradient of an embedding, or of any gather, comes to. No atomics: the pairs (r, k) are sorted by segment,
equal ones as they came, and each segment is summed by one program; long ones are cut into chunks that are summed side
by side and then put together in their order.

Dims: R rows, K numbers a row, S segments, D width.
"""

import torch
from torch import Tensor

from recsys.kernels.backend import choose_backend
from recsys.kernels.ordered_add import add_rows
from recsys.kernels.segment_sum.order import SegmentOrder
from recsys.kernels.segment_sum.reference import segment_sum_reference

CHUNK_BYTES = 16 << 20  # of weighted rows that the torch path holds at once


def segment_sum(
    x: Tensor,
    ids: Tensor,
    num_segments: int,
    *,
    weights: Tensor | None = None,
    scale: float = 1.0,
    add_to: Tensor | None = None,
    order: SegmentOrder | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Sums of the rows of `x`, a segment each; without a gradient.

    Args:
        x: (R, D) float.
        ids: (R,) or (R, K) int64; a number outside [0, num_segments) belongs to no segment.
        num_segments: S.
        weights: like `ids`, float; absent: 1.
        scale: factor of the sums; a Triton kernel is compiled for each value.
        add_to: (S, D), what the sums are added to; it stays as it is.
        order: `SegmentOrder.of(ids, num_segments)`, if it is at hand; the torch path has no use for it. One of
            other ids gives wrong sums: only its size is looked at.
        out_dtype: of the result; absent: that of `x`. Sums are formed in float32 at least.

    Returns:
        (S, D).

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    _check(x, ids, num_segments, weights, add_to)
    dtype = out_dtype or x.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"out_dtype is {dtype}; wanted a floating dtype")
    if order is not None and (len(order.ids), len(order.starts)) != (ids.numel(), num_segments + 1):
        raise ValueError(
            f"order is of {len(order.ids)} numbers and {len(order.starts) - 1} segments; wanted "
            f"SegmentOrder.of(ids, num_segments), of {ids.numel()} and {num_segments}"
        )
    backend = choose_backend("segment_sum", x)
    if backend == "triton":
        from recsys.kernels.segment_sum.triton_segment_sum import launch_segment_sum

        order = order or SegmentOrder.of(ids, num_segments)
        return launch_segment_sum(x, order, weights, scale, add_to, dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    sums = segment_sum_reference if backend == "reference" else _segment_sum_torch
    with torch.no_grad():
        total = sums(x.to(wide), ids, num_segments, weights=weights)
        total = total if scale == 1.0 else total * scale
        return (total if add_to is None else total + add_to).to(dtype)


def _segment_sum_torch(x: Tensor, ids: Tensor, num_segments: int, *, weights: Tensor | None = None) -> Tensor:
    rows, dtype = len(x), x.dtype if weights is None else torch.promote_types(x.dtype, weights.dtype)
    ids = ids if ids.dim() == 2 else ids[:, None]  # (R, K)
    K = ids.shape[1]
    out = x.new_zeros((num_segments, x.shape[1]), dtype=dtype)
    if ids.numel() == 0:
        return out
    lowest, highest = torch.aminmax(ids)
    if int(lowest) < 0 or int(highest) >= num_segments:
        return _sum_of_met(out, x, ids, weights)
    if weights is None and K == 1:
        return add_rows(out, ids.flatten(), x.to(dtype))
    weights = torch.ones_like(ids, dtype=dtype) if weights is None else weights.view(ids.shape)
    size = max(1, CHUNK_BYTES // max(1, K * x.shape[1] * dtype.itemsize))
    for start in range(0, rows, size):
        chunk = slice(start, start + size)
        weighted = weights[chunk, :, None] * x[chunk, None]  # (r, K, D)
        add_rows(out, ids[chunk].flatten(), weighted.flatten(0, 1))
    return out


def _sum_of_met(out: Tensor, x: Tensor, ids: Tensor, weights: Tensor | None) -> Tensor:
    """The sums where some pairs belong to no segment: only the others are looked at, chunk by chunk."""
    row, column = ((ids >= 0) & (ids < len(out))).nonzero(as_tuple=True)
    size = max(1, CHUNK_BYTES // max(1, x.shape[1] * out.element_size()))
    for start in range(0, len(row), size):
        r, k = row[start : start + size], column[start : start + size]
        picked = x.index_select(0, r).to(out.dtype)
        if weights is not None:
            picked *= weights.view(ids.shape)[r, k, None]
        add_rows(out, ids[r, k], picked)
    return out


def _check(x: Tensor, ids: Tensor, num_segments: int, weights: Tensor | None, add_to: Tensor | None) -> None:
    if x.dim() != 2 or not x.is_floating_point():
        raise ValueError(f"x has the shape {tuple(x.shape)} and {x.dtype}; wanted (R, D) of a floating dtype")
    if ids.dim() not in (1, 2) or len(ids) != len(x) or ids.dtype != torch.int64:
        raise ValueError(
            f"ids has the shape {tuple(ids.shape)} and {ids.dtype}, x has R={len(x)} rows; "
            f"wanted ({len(x)},) or ({len(x)}, K) of torch.int64"
        )
    if num_segments < 0:
        raise ValueError(f"num_segments={num_segments}; wanted at least 0")
    if weights is not None and (weights.shape != ids.shape or not weights.is_floating_point()):
        raise ValueError(
            f"weights has the shape {tuple(weights.shape)} and {weights.dtype}; wanted {tuple(ids.shape)} of a "
            "floating dtype, like ids"
        )
    if add_to is not None and add_to.shape != (num_segments, x.shape[1]):
        raise ValueError(
            f"add_to has the shape {tuple(add_to.shape)}; wanted (num_segments, D) = {(num_segments, x.shape[1])}"
        )
    for name, other in (("ids", ids), ("weights", weights), ("add_to", add_to)):
        if other is not None and other.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {other.device}; they must be equal")

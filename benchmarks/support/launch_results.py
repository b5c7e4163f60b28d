"""Whether two launches of the same kernels on the same numbers computed the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Of a cell, relative to its own size and the root mean square of its tensor: other blocks round in another order.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
INDICES_THAT_DIFFER = 0.01  # of all: where scores are as good as equal, either order is right


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str | None:
    """The first tensor that differs, and by how much; None where all agree.

    Args:
        found, wanted: results and gradients in the same order; integers are indices.
    """
    if len(found) != len(wanted):
        return f"{len(found)} tensors, wanted {len(wanted)}"
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"tensor {number}: {one.dtype} {tuple(one.shape)}, wanted {other.dtype} {tuple(other.shape)}"
        error, most = _error(one, other)
        if not error <= most:
            return f"tensor {number}: off by {error:.1e}, at most {most:.0e} is rounding"
    return None


def _error(one: Tensor, other: Tensor) -> tuple[float, float]:
    """How far apart they are, and how far they may be; NaN or infinity is right where both have it."""
    if not one.numel():
        return 0.0, 0.0
    if not one.is_floating_point():
        return float((one != other).float().mean()), INDICES_THAT_DIFFER
    wide = torch.promote_types(one.dtype, torch.float32)
    a, b = one.to(wide), other.to(wide)
    finite = torch.isfinite(b)
    size = b.abs().masked_fill(~finite, 0.0)
    mean = size.square().sum().div(finite.sum().clamp(min=1)).sqrt()
    off = (a - b).abs().div_(size.add_(mean).clamp_(min=torch.finfo(wide).tiny))
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float(off.masked_fill_(is_same, 0.0).nan_to_num_(nan=torch.inf).max()), TOLERANCE[one.dtype]

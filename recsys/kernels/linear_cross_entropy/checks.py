"""What linear_cross_entropy refuses, by name and value."""

import torch
from torch import Tensor


def check(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    memory_budget_bytes: int,
) -> None:
    """All that is known without a look at the numbers.

    Raises:
        ValueError: shapes, dtypes, devices or ranges do not agree.
    """
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}, w has {tuple(w.shape)}; wanted (N, D) and (V, D)")
    if len(w) == 0:
        raise ValueError("w has V=0 rows; wanted at least one item")
    if target.shape != x.shape[:1]:
        raise ValueError(f"target has the shape {tuple(target.shape)}, x has N={len(x)} rows; wanted ({len(x)},)")
    if target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype}; wanted int64")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"bias has the shape {tuple(bias.shape)}, w has V={len(w)} rows; wanted ({len(w)},)")
    for name, other in (("x", x), ("w", w), ("target", target), ("bias", bias)):
        if other is None:
            continue
        if other.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {other.device}; they must be equal")
        if name != "target" and not other.is_floating_point():
            raise ValueError(f"{name} is {other.dtype}; wanted a floating dtype")
    if not isinstance(ignore_index, int):
        raise ValueError(f"ignore_index={ignore_index!r}; wanted a whole number, such as -100")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r}; wanted 'mean', 'sum' or 'none'")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing={label_smoothing}; wanted 0 to 1")
    if memory_budget_bytes < 1:
        raise ValueError(f"memory_budget_bytes={memory_budget_bytes}; wanted at least 1")


def check_targets(target: Tensor, counts: Tensor, num_items: int, ignore_index: int) -> None:
    """Reads the targets: on a GPU the host waits for it.

    Raises:
        ValueError: a row that counts has a target outside [0, V).
    """
    wrong = counts & ((target < 0) | (target >= num_items))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"target[{row}]={int(target[row])}; wanted 0 to V-1={num_items - 1}, or ignore_index={ignore_index}"
        )

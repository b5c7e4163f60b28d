"""What sampled_loss refuses: one line with the value, what was wanted, and the argument's name."""

from typing import get_args

import torch
from torch import Tensor

from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.sampled_tiles import Kind


def check_sampled(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    log_q: Tensor | None,
    kind: str,
    beta: float,
    reduction: str,
) -> None:
    """Raise ValueError where tensors, kind or ranges do not agree."""
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}, w has {tuple(w.shape)}; wanted (N, D) and (V, D)")
    if len(w) == 0:
        raise ValueError("w has V=0 rows; wanted at least one item")
    _check_ids("target", target, 0, len(w))
    if target.shape != x.shape[:1]:
        raise ValueError(f"target has the shape {tuple(target.shape)}, x has N={len(x)} rows; wanted ({len(x)},)")
    for name, other in (("bias", bias), ("log_q", log_q)):
        if other is not None and other.shape != w.shape[:1]:
            raise ValueError(f"{name} has the shape {tuple(other.shape)}, w has V={len(w)} rows; wanted ({len(w)},)")
    for name, other in (("x", x), ("w", w), ("target", target), ("bias", bias), ("log_q", log_q)):
        if other is not None and other.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {other.device}; they must be equal")
        if other is not None and name != "target" and not other.is_floating_point():
            raise ValueError(f"{name} is {other.dtype}; wanted a floating dtype")
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}; wanted {', '.join(get_args(Kind))}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r}; wanted 'mean', 'sum' or 'none'")
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta={beta}; wanted above 0, at most 1")
    _check_log_q(log_q, kind)


def _check_log_q(log_q: Tensor | None, kind: str) -> None:
    if (kind == "logq") != (log_q is not None) and kind != "softmax":
        wanted = "needs log_q, the log of each item's probability" if kind == "logq" else "has no use for log_q"
        raise ValueError(f"kind={kind!r} {wanted}")
    if log_q is not None and not bool(torch.isfinite(log_q).all()):
        item = int((~torch.isfinite(log_q)).nonzero()[0])
        raise ValueError(f"log_q[{item}]={float(log_q[item])}; wanted finite values")
    if log_q is not None and kind == "logq" and float(log_q.max()) >= 0.0:
        item = int(log_q.argmax())
        raise ValueError(f"log_q[{item}]={float(log_q[item])}; wanted below 0: the log of a probability below 1")


def check_negatives(num_rows: int, num_items: int, negatives: Tensor, groups: Tensor | None) -> None:
    """Raise ValueError where the negatives do not fit the rows, or lie outside the items."""
    _check_ids("negatives", negatives, -1, num_items)
    if groups is None:
        if negatives.dim() != 1 and (negatives.dim() != 2 or len(negatives) != num_rows):
            raise ValueError(
                f"negatives has the shape {tuple(negatives.shape)}, x has N={num_rows} rows; "
                "wanted (K,), (N, K), or (G, K) with groups"
            )
        return
    if negatives.dim() != 2 or groups.shape != (num_rows,):
        raise ValueError(
            f"negatives has the shape {tuple(negatives.shape)}, groups has {tuple(groups.shape)}; "
            f"wanted (G, K) and (N={num_rows},)"
        )
    _check_ids("groups", groups, 0, len(negatives))


def _check_ids(name: str, ids: Tensor, low: int, high: int) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} is {ids.dtype}; wanted int64")
    if ids.numel() and (int(ids.min()) < low or int(ids.max()) >= high):
        wrong = ids[(ids < low) | (ids >= high)]
        raise ValueError(f"{name} holds {int(wrong[0])}; wanted {low} to {high - 1}")

"""What sampled_loss refuses: one line with the value, what was wanted, and the argument's name."""

from typing import get_args

import torch
from torch import Tensor

from recsys.kernels.backend import named_backend
from recsys.kernels.cross_entropy_rows import Reduction
from recsys.kernels.sampled_loss.settings import Kind

MAX_WIDTH = 256  # of the Triton path


def check_shapes(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Tensor,
    groups: Tensor | None,
    bias: Tensor | None,
    log_q: Tensor | None,
    kind: str,
    beta: float,
    reduction: str,
) -> None:
    """Raise ValueError where shapes, dtypes or devices do not agree, or an argument does not belong to this kind."""
    if x.dim() != 2 or w.dim() != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x has the shape {tuple(x.shape)}, w has {tuple(w.shape)}; wanted (N, D) and (V, D)")
    if len(w) == 0:
        raise ValueError("w has V=0 rows; wanted at least one item")
    if target.shape != x.shape[:1]:
        raise ValueError(f"target has the shape {tuple(target.shape)}, x has N={len(x)} rows; wanted ({len(x)},)")
    for name, other in (("bias", bias), ("log_q", log_q)):
        if other is not None and other.shape != w.shape[:1]:
            raise ValueError(f"{name} has the shape {tuple(other.shape)}, w has V={len(w)} rows; wanted ({len(w)},)")
    for name, other in (("x", x), ("w", w), ("bias", bias), ("log_q", log_q)):
        if other is not None and not other.is_floating_point():
            raise ValueError(f"{name} is {other.dtype}; wanted a floating dtype")
    for name, other in (("target", target), ("negatives", negatives), ("groups", groups)):
        if other is not None and other.dtype != torch.int64:
            raise ValueError(f"{name} is {other.dtype}; wanted int64")
    named = {"w": w, "target": target, "negatives": negatives, "groups": groups, "bias": bias, "log_q": log_q}
    for name, other in named.items():
        if other is not None and other.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} is on {other.device}; they must be equal")
    _check_negatives(len(x), negatives, groups)
    _check_settings(kind, beta, reduction, has_log_q=log_q is not None)


def _check_negatives(num_rows: int, negatives: Tensor, groups: Tensor | None) -> None:
    if groups is None:
        if negatives.dim() != 1 and (negatives.dim() != 2 or len(negatives) != num_rows):
            raise ValueError(
                f"negatives has the shape {tuple(negatives.shape)}, x has N={num_rows} rows; "
                "wanted (K,), (N, K), or (G, K) with groups"
            )
    elif negatives.dim() != 2 or groups.shape != (num_rows,):
        raise ValueError(
            f"negatives has the shape {tuple(negatives.shape)}, groups has {tuple(groups.shape)}; "
            f"wanted (G, K) and (N={num_rows},)"
        )


def _check_settings(kind: str, beta: float, reduction: str, *, has_log_q: bool) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}; wanted {', '.join(get_args(Kind))}")
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r}; wanted 'mean', 'sum' or 'none'")
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta={beta}; wanted above 0, at most 1")
    if beta != 1.0 and kind != "gbce":
        raise ValueError(f"kind={kind!r} has no use for beta={beta}; wanted kind='gbce', or no beta")
    if (kind == "logq") != has_log_q and kind != "softmax":
        wanted = "needs log_q, the log of each item's probability" if kind == "logq" else "has no use for log_q"
        raise ValueError(f"kind={kind!r} {wanted}")


def check_width(x: Tensor) -> bool:
    """Whether the Triton path takes rows as wide as those of `x`.

    Raises:
        ValueError: it does not, and RECSYS_KERNELS forces it.
    """
    if x.shape[1] <= MAX_WIDTH:
        return True
    if named_backend() == "triton":
        raise ValueError(
            f"x has D={x.shape[1]}, and RECSYS_KERNELS=triton; wanted at most {MAX_WIDTH}; "
            "unset RECSYS_KERNELS to take the torch path"
        )
    return False


def check_ids(
    target: Tensor, negatives: Tensor, groups: Tensor | None, log_q: Tensor | None, kind: str, num_items: int
) -> None:
    """Raise ValueError where an id or a log q lies out of range; tensors on a GPU, which would be waited for, pass."""
    if target.device.type != "cpu":
        return
    _check_ids("target", target, 0, num_items)
    _check_ids("negatives", negatives, -1, num_items)
    if groups is not None:
        _check_ids("groups", groups, 0, len(negatives))
    if log_q is not None and not bool(torch.isfinite(log_q).all()):
        item = int((~torch.isfinite(log_q)).nonzero()[0])
        raise ValueError(f"log_q[{item}]={float(log_q[item])}; wanted finite values")
    if log_q is not None and kind == "logq" and float(log_q.float().exp().max()) >= 1.0:
        item = int(log_q.argmax())
        raise ValueError(
            f"log_q[{item}]={float(log_q[item])}; wanted below -1e-7: the log of a probability below 1 in float32"
        )


def _check_ids(name: str, ids: Tensor, low: int, high: int) -> None:
    if ids.numel() and (int(ids.min()) < low or int(ids.max()) >= high):
        wrong = ids[(ids < low) | (ids >= high)]
        raise ValueError(f"{name} holds {int(wrong[0])}; wanted {low} to {high - 1}")

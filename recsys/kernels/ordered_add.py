"""Rows added to rows of a table, in plain torch and always in the same order."""

from torch import Tensor


def add_rows(out: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """`out[ids] += rows` in the order of `rows`, in place: on a GPU index_add_ has atomics, and index_put_ sorts.

    Args:
        out: (S, …) float.
        ids: (R,) int64 in [0, S).
        rows: (R, …), dtype of `out`.
    """
    if out.device.type == "cpu":
        return out.index_add_(0, ids, rows)
    return out.index_put_((ids,), rows, accumulate=True)

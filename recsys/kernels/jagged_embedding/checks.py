"""What jagged_embedding refuses: one line with the value, what was wanted, and the argument's name."""

import torch
from torch import Tensor

MAX_SEED = 2**63


def check_shapes(
    w: Tensor,
    ids: Tensor,
    pos: Tensor | None,
    positions: Tensor | None,
    dropout_p: float,
    seed: int | None,
    padding_idx: int | None,
) -> None:
    """Raise ValueError where shapes, dtypes or devices do not agree, or a number lies out of range."""
    for name, table in (("w", w), ("pos", pos)):
        if table is not None and (table.dim() != 2 or not table.is_floating_point()):
            rows = "V" if name == "w" else "P"
            raise ValueError(
                f"{name} has the shape {tuple(table.shape)} and {table.dtype}; wanted ({rows}, D) of a floating dtype"
            )
    for name, numbers in (("ids", ids), ("positions", positions)):
        if numbers is not None and (numbers.dim() != 1 or numbers.dtype != torch.int64):
            raise ValueError(
                f"{name} has the shape {tuple(numbers.shape)} and {numbers.dtype}; wanted (T,) of torch.int64"
            )
    if (pos is None) != (positions is None):
        given, missing = ("pos", "positions") if positions is None else ("positions", "pos")
        raise ValueError(f"{given} is given, {missing} is None; give both or neither")
    if pos is not None and positions is not None:
        if pos.shape[1] != w.shape[1] or pos.dtype != w.dtype:
            raise ValueError(
                f"pos has D={pos.shape[1]} and {pos.dtype}, w has D={w.shape[1]} and {w.dtype}; they must be equal"
            )
        if positions.shape != ids.shape:
            raise ValueError(f"positions has T={positions.shape[0]}, ids has T={ids.shape[0]}; they must be equal")
    for name, other in (("ids", ids), ("pos", pos), ("positions", positions)):
        if other is not None and other.device != w.device:
            raise ValueError(f"w is on {w.device}, {name} is on {other.device}; they must be equal")
    _check_numbers(w, dropout_p, seed, padding_idx)


def _check_numbers(w: Tensor, dropout_p: float, seed: int | None, padding_idx: int | None) -> None:
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p}; wanted at least 0, below 1")
    if dropout_p > 0.0 and seed is None:
        raise ValueError(f"dropout_p={dropout_p}, seed=None; give a seed, one for each step")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < MAX_SEED):
        raise ValueError(f"seed={seed!r}; wanted an int from 0 to 2**63 - 1")
    if padding_idx is not None and (not isinstance(padding_idx, int) or not 0 <= padding_idx < w.shape[0]):
        raise ValueError(f"padding_idx={padding_idx!r}; wanted 0 to {w.shape[0] - 1}, a row of w")


def check_numbers_of_rows(name: str, numbers: Tensor | None, num_rows: int) -> None:
    """Raise ValueError where a number is that of no row; tensors on a GPU, which would be waited for, pass."""
    if numbers is None or numbers.device.type != "cpu" or numbers.numel() == 0:
        return
    lowest, highest = torch.aminmax(numbers)
    if int(lowest) < 0 or int(highest) >= num_rows:
        place = int(((numbers < 0) | (numbers >= num_rows)).nonzero()[0])
        raise ValueError(f"{name}[{place}]={int(numbers[place])}; wanted 0 to {num_rows - 1}")

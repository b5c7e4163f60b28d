"""Factors that an op takes as numbers."""

import math
import numbers

import torch
from torch import Tensor


def as_factor(name: str, value: object) -> float:
    """`value` as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is infinite or NaN, or a tensor that requires a gradient, which a factor has not.
    """
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name} requires a gradient, and has none; wanted a number: multiply an input by it")
        if value.numel() != 1:
            raise TypeError(f"{name} has the shape {tuple(value.shape)}; wanted a number")
        value = value.item()
    if isinstance(value, torch.SymFloat | torch.SymInt):  # in compiled code
        return float(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r}; wanted a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value}; wanted a finite number")
    return float(value)

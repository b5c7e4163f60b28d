"""Gradients that have no gradient of their own, and say so."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Outputs = TypeVar("Outputs")


def first_only(op: str) -> Callable[[Callable[..., Outputs]], Callable[..., Outputs]]:
    """For `backward` of an autograd function: an error where a gradient of the gradient is asked for.

    torch's `once_differentiable` gives a gradient that is cut off in silence where the incoming one requires none.
    """

    def decorated(backward: Callable[..., Outputs]) -> Callable[..., Outputs]:
        @wraps(backward)
        def checked(ctx: Any, *grads: Any) -> Outputs:
            if torch.is_grad_enabled():  # by create_graph=True alone
                raise RuntimeError(f"{op} has no second derivative; wanted its gradient without create_graph=True")
            return backward(ctx, *grads)

        return checked

    return decorated

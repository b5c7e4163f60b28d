"""What the parts of a table's state say of themselves, and how their tensors are looked at before they are loaded."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Stateful(Protocol):
    """A part of a table with a state of its own."""

    def state(self) -> dict[str, Tensor]:
        """What must be kept to go on from it."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


@runtime_checkable
class Checked(Stateful, Protocol):
    """One that says beforehand whether it can go on from a state."""

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it; nothing changes.

        Raises:
            ValueError: it does not fit; the message begins with the tensor's name.
        """


@runtime_checkable
class Forgetting(Protocol):
    """One that can begin anew."""

    def forget(self) -> None:
        """Be as it was before it knew anything."""


@runtime_checkable
class OfWidth(Protocol):
    """One whose state is of rows of a width."""

    def width_of(self, state: Mapping[str, Tensor]) -> int | None:
        """That width; None where the state does not say."""


def tensor_of(
    state: Mapping[str, Tensor], name: str, size: int | None = None, dtype: torch.dtype = torch.int64
) -> Tensor:
    """The tensor of that name, (size,), or of one dim.

    Raises:
        ValueError: it is missing, or of another type or shape.
    """
    if name not in state:
        raise ValueError(f"{name} is missing; wanted what state() of a table gives")
    given = state[name]
    if given.dtype != dtype or given.dim() != 1 or (size is not None and len(given) != size):
        wanted = f"{str(dtype).removeprefix('torch.')} ({'N' if size is None else size},)"
        raise ValueError(f"{name} is {given.dtype} of the shape {tuple(given.shape)}; wanted {wanted}")
    return given


def check_range(name: str, values: Tensor, least: int, most: int) -> None:
    """Whether values (N,) lie between these two.

    Raises:
        ValueError: one does not.
    """
    if len(values) and not least <= int(values.min()) <= int(values.max()) <= most:
        raise ValueError(f"{name} holds {int(values.min())} to {int(values.max())}; wanted {least} to {most}")

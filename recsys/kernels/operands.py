"""The schema of an operator whose operands are the fields of named tuples, so that each is named in one place."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

from torch import Tensor

First = TypeVar("First")
Rest = TypeVar("Rest")
_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "SymInt",
    float: "float",
    float | None: "float?",
    str: "str",
    Sequence[int]: "SymInt[]",
}


def schema_of(*bundles: type, returns: int) -> str:
    """For `torch.library.custom_op`: the fields of `bundles` in their order, and so many tensors as results.

    Raises:
        KeyError: a field's type is none that an operator takes.
    """
    fields = [f"{_TYPES[hint]} {name}" for bundle in bundles for name, hint in get_type_hints(bundle).items()]
    return f"({', '.join(fields)}) -> ({', '.join(['Tensor'] * returns)})"


def taken_apart(given: Sequence[Any], first: type[First], rest: type[Rest]) -> tuple[First, Rest]:
    """What an operator was given, as the two bundles of its schema."""
    count = len(get_type_hints(first))
    return first(*given[:count]), rest(*given[count:])

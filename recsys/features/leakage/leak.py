"""A leak: what was found, where, how often, and one example of it."""

import dataclasses
from collections.abc import Sequence

from recsys.errors import DataError


@dataclasses.dataclass(frozen=True)
class Leak:
    """One kind of leak in one place.

    Attributes:
        name: what it is called: `future event`, `duplicated user`, …; docs/protocols.md lists them.
        where: the part, the array or the file that holds it.
        count: events, users or items concerned, at least 1.
        example: the first of them.
    """

    name: str
    where: str
    count: int
    example: str

    def __str__(self) -> str:
        return f"{self.name}: {self.where} ({self.count:,}, the first: {self.example})"


def refuse_leaks(leaks: Sequence[Leak], where: str = "", remedy: str = "prepare the dataset again") -> None:
    """Raise DataError that names every leak, if there is one."""
    if leaks:
        prefix = f"{where}: " if where else ""
        found = "; ".join(str(leak) for leak in leaks)
        raise DataError(f"{prefix}leakage: {found}; {remedy}, figures on it mean nothing")

"""How long the trials that are still to run will take.

A trial costs what earlier ones of its family cost, by the questions asked. EASE has two prices: the first trial of an
l2 after another one inverts a matrix, the next ones with that l2 share it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

INVERSE = "ease, a new l2"


@dataclass(frozen=True)
class Part:
    """What a trial will be charged as; work: how many questions it asks, 1 where that hardly counts."""

    kind: str
    work: float = 1.0


class TimeLeft:
    """Prices of what was run, and the sum for what was not."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._work: dict[str, float] = {}

    def add(self, part: Part, seconds: float) -> None:
        """A trial took this long."""
        self._seconds[part.kind] = self._seconds.get(part.kind, 0.0) + seconds
        self._work[part.kind] = self._work.get(part.kind, 0.0) + part.work

    def of(self, parts: Iterable[Part]) -> float:
        """Seconds of these; a kind that never ran is priced as the mean of all families, EASE's inverses apart."""
        cheap = [kind for kind in self._work if kind != INVERSE]
        work = sum(self._work[kind] for kind in cheap)
        usual = sum(self._seconds[kind] for kind in cheap) / work if work else 0.0
        prices = {kind: self._seconds[kind] / self._work[kind] for kind in self._work}
        return sum(prices.get(part.kind, usual) * part.work for part in parts)


def parts_of(trials: Sequence[tuple[str, dict[str, Any]]], n: int, l2: float | None) -> list[Part]:
    """The parts of trials (family, settings) that run in this order.

    Args:
        trials: in their order.
        n: questions that each asks.
        l2: whose inverse is at hand before the first.
    """
    parts = []
    for family, settings in trials:
        is_new = family == "ease" and settings["l2"] != l2
        l2 = settings["l2"] if family == "ease" else l2
        parts.append(Part(INVERSE) if is_new else Part(family, n))
    return parts

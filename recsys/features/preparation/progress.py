"""Lines of progress of a job of several steps: how far, how fast, how long still; at most one every two seconds."""

import time
from collections.abc import Callable

Say = Callable[[str], None]
LINE_EVERY_S = 2.0


class Steps:
    """Tells of a long job, step by step."""

    def __init__(self, tell: Say, num_steps: int) -> None:
        self._tell, self._num_steps, self._number = tell, num_steps, 0
        self._name, self._total, self._unit, self._done = "", 0, "", 0
        self._began = self._told = time.perf_counter()

    def start(self, name: str, total: int, unit: str) -> None:
        """The next step begins.

        Args:
            name: what it does.
            total: how many units it takes, estimated.
            unit: what is counted, in the plural.
        """
        self._number += 1
        self._name, self._total, self._unit, self._done = name, total, unit, 0
        self._began = self._told = time.perf_counter()

    def advance(self, done: int) -> None:
        """So many more units are done."""
        self._done += done
        now = time.perf_counter()
        if now - self._told < LINE_EVERY_S:
            return
        self._told = now
        speed = self._done / (now - self._began)
        left = f", about {max(0.0, (self._total - self._done) / speed):.0f} s left" if self._done else ""
        where = f"step {self._number} of {self._num_steps}: {self._name}"
        self._tell(f"{where}: {self._done:,} of about {self._total:,} {self._unit}, {speed:,.0f} a second{left}")

    def again(self, why: str) -> None:
        """The step starts over."""
        self._number -= 1
        self._tell(f"{why}: {self._name} starts again")


def silent(line: str) -> None:
    """Tells nobody."""
    del line

"""Ticks of a table: a tick is one step, and a row's tick is that of its last touch.

Ticks are 4 bytes a row and never go back. In which second a tick fell is written down once a second, so that times cost
as much as the seconds that a table has trained, not as its rows.
"""

import math
import time
from array import array
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from recsys.config import finite
from recsys.models.embedding_table.state_checks import check_range, tensor_of

LONG = 1 << 17  # seconds that are written down before any is forgotten
MOST_TICKS = 2**31 - 2
LATEST_S = 253_402_300_800.0  # the end of the year 9999, and as many seconds before 1970


class Clock:
    """The step that is running, and when the steps before it were.

    Until a time is set it is the machine's; from then on it is what was set last.
    """

    def __init__(self) -> None:
        self.tick = 0
        self._given: float | None = None
        self._starts = array("q")  # ticks at which a new second began
        self._seconds = array("q")

    @property
    def now_s(self) -> float:
        """Seconds, of the machine or as they were set."""
        return time.time() if self._given is None else self._given

    def set(self, seconds: float) -> None:
        """Say what time it is; after the machine's clock, any time from the second in which the last step ended.

        Raises:
            ValueError: it was later before, or it is no number of seconds up to the year 9999.
        """
        now_s = finite(seconds)
        if math.isnan(now_s):
            raise ValueError(f"the clock is set to {seconds}; wanted a number of seconds")
        if abs(now_s) > LATEST_S:
            raise ValueError(f"the clock is set to {now_s}; wanted seconds since 1970, at most {LATEST_S:.0f}")
        if self._given is not None:
            stood_at, is_past = self._given, now_s < self._given
        else:  # seconds are written down rounded up
            stood_at = self._seconds[-1] if self._seconds else now_s
            is_past = math.ceil(now_s) < stood_at
        if is_past:
            raise ValueError(f"the clock is set to {now_s}, but stood at {stood_at}; time may not go back")
        self._given = now_s

    def advance(self) -> int:
        """The next tick; the one that ends belongs to this second.

        Raises:
            OverflowError: there were 2^31 - 2 ticks; `renumber` makes room.
        """
        if self.tick >= MOST_TICKS:
            raise OverflowError(f"there were {MOST_TICKS} steps; renumber the ticks")
        second = math.ceil(self.now_s)
        if not self._seconds or second > self._seconds[-1]:
            self._starts.append(self.tick)
            self._seconds.append(second)
        self.tick += 1
        return self.tick

    @property
    def is_long(self) -> bool:
        """Whether it is time to forget some: once the seconds that are written down are twice as many as at last."""
        return len(self._starts) >= LONG and len(self._starts) & (len(self._starts) - 1) == 0

    def forget_before(self, tick: int) -> None:
        """Nobody will ask for the seconds of ticks before this one."""
        first = max(int(np.searchsorted(self._starts, tick, side="right")) - 1, 0)
        del self._starts[:first], self._seconds[:first]

    def first_tick_after(self, seconds: float) -> int:
        """The first tick that ended later than so many seconds; the running one if none did."""
        place = int(np.searchsorted(self._seconds, seconds, side="right"))
        return self._starts[place] if place < len(self._starts) else self.tick

    def seconds_of(self, ticks: Tensor) -> Tensor:
        """(N,) int64 seconds in which ticks (N,) ended; the running one's are those of now."""
        numbers = ticks.cpu().numpy()
        places = np.maximum(np.searchsorted(self._starts, numbers, side="right") - 1, 0)
        seconds = np.array(self._seconds or [0], dtype=np.int64)[places]
        return torch.from_numpy(np.where(numbers >= self.tick, math.ceil(self.now_s), seconds))

    def renumber(self, kept: Tensor) -> None:
        """Let ticks `kept` (K,) int64, ascending, each once and over, be numbers 0 to K - 1; the running one is K."""
        seconds = self.seconds_of(kept).tolist()
        self._starts, self._seconds, self.tick = array("q"), array("q"), len(kept)
        for number, second in enumerate(seconds):
            if not self._seconds or second > self._seconds[-1]:
                self._starts.append(number)
                self._seconds.append(second)

    def state(self) -> dict[str, Tensor]:
        """All of it."""
        return {
            "now": torch.tensor([] if self._given is None else [self._given], dtype=torch.float64),
            "tick": torch.tensor([self.tick]),
            "starts": torch.tensor(self._starts, dtype=torch.int64),
            "seconds": torch.tensor(self._seconds, dtype=torch.int64),
        }

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_state` would take it.

        Raises:
            ValueError: it is no clock's.
        """
        check_range("tick", tensor_of(state, "tick", 1), 0, MOST_TICKS)
        starts, seconds = tensor_of(state, "starts"), tensor_of(state, "seconds")
        if len(starts) != len(seconds):
            raise ValueError(f"starts has {len(starts)} elements, seconds has {len(seconds)}; they must be equal")
        check_range("starts", starts, 0, int(state["tick"][0]) - 1)
        check_range("seconds", seconds, -int(LATEST_S), int(LATEST_S))
        for name, values in (("starts", starts), ("seconds", seconds)):
            if bool((values[1:] <= values[:-1]).any()):
                raise ValueError(f"{name} do not ascend; wanted each above the one before it")
        now = tensor_of(state, "now", dtype=torch.float64).tolist()
        if len(now) > 1 or not all(abs(value) <= LATEST_S for value in now):
            raise ValueError(f"now is {now}; wanted one number of seconds, or none")
        if now and len(seconds) and math.ceil(now[0]) < int(seconds[-1]):
            raise ValueError(f"now is {now[0]}, but steps ended in second {int(seconds[-1])}; wanted no earlier one")

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self._given = float(state["now"][0]) if len(state["now"]) else None
        self.tick, self._starts = int(state["tick"][0]), array("q", state["starts"].tolist())
        self._seconds = array("q", state["seconds"].tolist())

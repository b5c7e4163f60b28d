"""Which pieces of the users' training parts an epoch holds: the last events alone, or every window, once or more often.

    windows of n > L events, a stride s apart: begin at n-L, n-L-s, n-L-2s, ... while above 0, and at 0

Sun et al. 2019, arXiv:1904.06690, train on such windows. Needs numpy alone.
"""

from dataclasses import dataclass

import numpy as np

from recsys.features.slices import Int64s, ranges


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a model wants its training sequences cut and repeated.

    An instance is one copy of one window: its number is `window * copies + copy`, the same in every epoch and run.
    """

    window_stride: int | None = None  # events between windows; None: the last events of each user alone
    copies: int = 1  # times that each window occurs in an epoch

    def __post_init__(self) -> None:
        if self.window_stride is not None and self.window_stride < 1:
            raise ValueError(f"window_stride={self.window_stride} must be at least 1, or null")
        if self.copies < 1:
            raise ValueError(f"copies={self.copies} must be at least 1")


def stride_of(window_prop: float | None, max_len: int) -> int | None:
    """Events between two windows that each read `max_len`; None, without windows, for None.

    Raises:
        ValueError: the stride is below 1 or above `max_len`.
    """
    if window_prop is None:
        return None
    if not 1 <= window_prop * max_len <= max_len:
        raise ValueError(f"window_prop={window_prop} must be in [1/max_len, 1], or null")
    return int(window_prop * max_len)


def windows_of(start: Int64s, end: Int64s, max_len: int, stride: int | None) -> tuple[Int64s, Int64s, Int64s]:
    """The windows of N runs of events, run after run, the earliest first.

    Args:
        start, end: (N,) int64, first event of each run and one past its last.
        max_len: longest window.
        stride: events between two windows of a run; None: its last `max_len` events alone.

    Returns:
        (W,) int64 number of the run, (W,) int64 first event, (W,) int64 one past the last event.
    """
    if stride is None:
        return np.arange(len(start)), np.maximum(start, end - max_len), end
    excess = np.maximum(end - start - max_len, 0)  # where the last window begins
    count = 1 + -(-excess // stride)
    run = np.repeat(np.arange(len(start)), count)
    later = count[run] - 1 - ranges(np.zeros_like(count), count)  # windows of the run that begin after this one
    begin = start[run] + np.maximum(excess[run] - later * stride, 0)
    return run, begin, np.minimum(begin + max_len, end[run])

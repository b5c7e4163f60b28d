import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.features.sampling import Sampling, windows_of


def windows(lengths: list[int], max_len: int, stride: int | None) -> list[tuple[int, int, int]]:
    """(run, first, one past the last) of runs that lie one after another, counted from each run's first event."""
    end = np.cumsum(np.array(lengths, dtype=np.int64))
    start = end - np.array(lengths, dtype=np.int64)
    run, begin, stop = windows_of(start, end, max_len, stride)
    return [(int(r), int(b - start[r]), int(e - start[r])) for r, b, e in zip(run, begin, stop, strict=True)]


def test_the_windows_of_a_run_end_with_its_last_events_and_begin_with_its_first() -> None:
    assert windows([12], 5, 3) == [(0, 0, 5), (0, 1, 6), (0, 4, 9), (0, 7, 12)]
    assert windows([11], 5, 3) == [(0, 0, 5), (0, 3, 8), (0, 6, 11)], "a stride that divides gives no window twice"
    assert windows([6], 5, 5) == [(0, 0, 5), (0, 1, 6)]


def test_a_run_that_fits_is_one_window() -> None:
    assert windows([5, 1, 0, 4], 5, 2) == [(0, 0, 5), (1, 0, 1), (2, 0, 0), (3, 0, 4)]
    assert windows([], 5, 2) == []


def test_without_a_stride_the_last_events_are_the_only_window() -> None:
    assert windows([12, 3], 5, None) == [(0, 7, 12), (1, 0, 3)]


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    max_len=st.integers(1, 12),
    stride=st.integers(1, 15),
)
def test_windows_are_those_of_the_definition(lengths: list[int], max_len: int, stride: int) -> None:
    wanted = []
    for run, n in enumerate(lengths):
        begins = [0] if n <= max_len else sorted([*range(n - max_len, 0, -stride), 0])
        wanted += [(run, begin, min(begin + max_len, n)) for begin in begins]
    assert windows(lengths, max_len, stride) == wanted


@pytest.mark.parametrize(("key", "value"), [("window_stride", 0), ("copies", 0)])
def test_a_sampling_out_of_range_is_named(key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key}={value} must be at least 1"):
        Sampling(**{key: value})

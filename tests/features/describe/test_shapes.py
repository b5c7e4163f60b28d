import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.features.describe.shapes import gini, lengths_shape, log_bins, popularity_shape
from recsys.features.describe.tally import GAP_EDGES_S, Tally, gap_percentile

COUNTS = st.lists(st.integers(1, 1000), min_size=1, max_size=60).map(lambda found: np.array(sorted(found)))


@given(counts=COUNTS)
def test_gini_is_the_mean_difference_over_twice_the_mean(counts: np.ndarray) -> None:
    difference = np.abs(counts[:, None] - counts[None, :]).mean()
    assert gini(counts) == pytest.approx(difference / (2 * counts.mean()), abs=1e-9)


@given(counts=COUNTS)
def test_bins_hold_every_value_once(counts: np.ndarray) -> None:
    bins = log_bins(counts, "users")
    assert [row["users"] for row in bins] == [int(((counts >= r["from"]) & (counts <= r["to"])).sum()) for r in bins]
    assert sum(row["users"] for row in bins) == len(counts)


def test_concentration_is_that_of_worked_values() -> None:
    shape = popularity_shape(np.array([1] * 99 + [101]))
    assert shape["top_1_percent_share"] == pytest.approx(101 / 200)
    assert shape["lorenz"][0] == 0
    assert shape["lorenz"][99] == pytest.approx(99 / 200)
    assert shape["lorenz"][100] == 1
    assert shape["ranks"][0] == [1, 101]
    assert popularity_shape(np.array([3, 3, 3]))["gini"] == 0


def test_nothing_has_a_shape_too() -> None:
    empty = np.zeros(0, np.int64)
    assert lengths_shape(empty)["histogram"] == []
    assert popularity_shape(empty).keys() == popularity_shape(np.array([3, 1])).keys()
    assert popularity_shape(empty)["gini"] == 0.0
    assert gap_percentile(Tally().gaps, 0.5) is None


@given(gap=st.floats(0.01, 1e8))
def test_a_gap_is_told_to_within_a_tenth(gap: float) -> None:
    tally = Tally()
    times = np.array([0, round(gap * 1e6)])
    tally.add(np.array([0, 2]), np.array([1, 2]), times, None, is_time=True)
    found = gap_percentile(tally.gaps, 0.5)
    assert found is not None
    assert tally.gaps.sum() == 1
    assert found == pytest.approx(gap, rel=0.1) if gap >= 1 else 0 < found <= GAP_EDGES_S[2]

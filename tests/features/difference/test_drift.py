import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.difference.drift import drift, jensen_shannon


def test_the_distance_is_that_of_worked_values() -> None:
    assert jensen_shannon(np.array([1, 1]), np.array([2, 2])) == pytest.approx(0)
    assert jensen_shannon(np.array([1, 0]), np.array([0, 3])) == pytest.approx(1)
    # H(3/4, 1/4) - (H(1) + H(1/2)) / 2
    assert jensen_shannon(np.array([4, 0]), np.array([2, 2])) == pytest.approx(0.8112781 - 0.5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(2, 3_000), events=st.integers(50, 20_000), seed=st.integers(0, 99))
def test_two_samples_of_one_distribution_hardly_drift(size: int, events: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.ones(size))
    assert drift(generator.multinomial(events, shares), generator.multinomial(2 * events, shares)) < 0.03


def test_nothing_drifts_from_nothing() -> None:
    assert drift(np.array([0, 0]), np.array([1, 2])) == 0.0

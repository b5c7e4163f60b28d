"""The slope of memory over time: found where there is one, and its error tells how sure that is."""

import mmap

import numpy as np
import pytest

from benchmarks.table_soak import Samples, medians, resident_bytes, slope_of


@pytest.mark.parametrize("slope", [0.0, 0.5, 40.0])
def test_a_slope_is_found_within_three_errors(slope: float) -> None:
    hours = np.linspace(0.2, 1.2, 4000)
    noise = np.random.default_rng(0).standard_normal(4000)
    found, error = slope_of(hours, 400 + slope * hours + noise)
    assert abs(found - slope) < 3 * error
    assert 0 < error < 0.3


def test_noise_whose_neighbours_are_alike_is_told_as_uncertain() -> None:
    hours, draw = np.linspace(0, 1, 4000), np.random.default_rng(0)
    walks = [slope_of(hours, np.repeat(draw.standard_normal(40), 100)) for _ in range(50)]
    assert sum(abs(found) > 3 * error for found, error in walks) <= 4


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 40_000_000) as held:  # of the machine, not of what this process once freed
        held.write(b"1" * 40_000_000)
        assert 30e6 < resident_bytes() - before < 120e6


def test_medians_tell_a_step_from_a_slope() -> None:
    assert medians([5] * 50 + [7] * 50) == [5] * 5 + [7] * 5
    assert medians(range(100)) == [4.5 + 10 * part for part in range(10)]
    assert medians([3, 1]) == [3, 1]


def test_samples_of_the_warm_up_are_left_out() -> None:
    samples = Samples()
    for second in range(6):
        samples.add(second, 100 + second)
    late = samples.after(2)
    assert list(late.times) == [3, 4, 5]
    assert list(late.sizes) == [103, 104, 105]

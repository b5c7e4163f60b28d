import numpy as np
import pytest

from recsys.pipelines.compare.intervals import paired_means
from recsys.pipelines.evaluation.bootstrap import difference_interval, mean_interval


def test_one_run_each_is_the_paired_bootstrap_over_users() -> None:
    ours, theirs = np.random.default_rng(0).random((2, 300))
    found = paired_means({"a": ours[None], "b": theirs[None]})
    wanted, mean = difference_interval(ours, theirs), mean_interval(ours)
    difference = found.difference("a", "b")
    assert (difference.mean, difference.low, difference.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert found.interval("a").low == pytest.approx(mean.low)


def test_runs_that_differ_widen_the_interval() -> None:
    """Every user has the same figure in a run, and the runs differ: all of the noise is the runs'."""
    runs = np.array([[0.2], [0.4], [0.6]]).repeat(500, axis=1)
    found = paired_means({"model": runs, "floor": np.full((1, 500), 0.3)})
    assert found.means["model"] == pytest.approx(0.4)
    interval = found.interval("model")
    assert interval.low < 0.25
    assert interval.high > 0.55
    assert found.interval("floor").high == pytest.approx(0.3)


def test_runs_that_agree_add_nothing() -> None:
    values = np.random.default_rng(1).random((1, 400))
    once, thrice = paired_means({"a": values}), paired_means({"a": values.repeat(3, axis=0)})
    assert thrice.interval("a").low == pytest.approx(once.interval("a").low)
    assert thrice.interval("a").high == pytest.approx(once.interval("a").high)


def test_scorers_of_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"answered \[3, 4\] queries"):
        paired_means({"a": np.zeros((1, 3)), "b": np.zeros((1, 4))})

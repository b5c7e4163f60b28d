from fractions import Fraction

import numpy as np
import pytest

from recsys.pipelines.evaluation.bootstrap import (
    difference_interval,
    interval_of,
    mean_interval,
    resampled_means,
    seeds_difference,
    seeds_interval,
)


def test_the_interval_of_a_mean_agrees_with_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    interval = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_a_wider_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).random(500)
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [
        mean_interval(rng.binomial(1, 0.3, 60).astype(float), resamples=300, level=0.9, seed=n) for n in range(200)
    ]
    covered = np.mean([interval.low <= 0.3 <= interval.high for interval in intervals])
    assert 0.82 < covered < 0.97


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(2)
    theirs = rng.random(1000)
    ours = theirs + 0.01 + 0.001 * rng.normal(size=1000)
    interval = difference_interval(ours, theirs)
    assert interval.low < (ours - theirs).mean() < interval.high
    assert interval.high - interval.low < 0.0002 < 0.01 * (mean_interval(ours).high - mean_interval(ours).low)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(3).random(100)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_sums_are_exact_and_no_column_depends_on_the_others() -> None:
    values = np.random.default_rng(6).random((1001, 7)) * [1, 1, 1e-9, 1e9, -3, 0, 1]
    means = resampled_means(values, resamples=40)
    for column in range(7):
        alone = resampled_means(values[:, column : column + 1], resamples=40)
        np.testing.assert_array_equal(alone[:, 0], means[:, column])
    drawn = np.random.default_rng(0).integers(0, 1001, (40, 1001))
    wanted = [float(sum(map(Fraction, values[rows, 0].tolist()))) / 1001 for rows in drawn]
    assert means[:, 0].tolist() == wanted


def test_columns_share_their_resamples() -> None:
    values = np.random.default_rng(4).random((50, 2))
    means = resampled_means(np.column_stack([values, values[:, 0] - values[:, 1]]), resamples=20)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], means[:, 2], atol=1e-12)


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).random((70, 3))
    whole = resampled_means(values, resamples=11)
    monkeypatch.setattr("recsys.pipelines.evaluation.bootstrap._DRAWS_AT_ONCE", 140)
    np.testing.assert_allclose(resampled_means(values, resamples=11), whole)


def test_one_query_has_an_interval_without_width() -> None:
    interval = mean_interval(np.array([0.25]))
    assert (interval.low, interval.mean, interval.high) == (0.25, 0.25, 0.25)


def test_what_has_no_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        mean_interval(np.empty(0))
    with pytest.raises(ValueError, match="NaN"):
        mean_interval(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="same queries"):
        difference_interval(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="level=95"):
        interval_of(0.0, np.zeros(3), level=95)
    with pytest.raises(ValueError, match="resamples=0"):
        mean_interval(np.ones(3), resamples=0)


def test_one_run_has_the_interval_of_its_queries() -> None:
    values = np.random.default_rng(6).random(200)
    assert seeds_interval(values[None]) == mean_interval(values)


def test_runs_that_differ_widen_the_interval_and_runs_that_agree_do_not() -> None:
    values = np.random.default_rng(7).random(500)
    alike, apart = np.stack([values] * 3), np.stack([values - 0.3, values, values + 0.3])
    one, three, wide = mean_interval(values), seeds_interval(alike), seeds_interval(apart)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert wide.high - wide.low > 3 * (one.high - one.low)
    assert wide.mean == pytest.approx(one.mean)


def test_a_difference_between_models_is_paired_over_queries() -> None:
    rng = np.random.default_rng(8)
    theirs = rng.random((2, 800))
    ours = theirs.mean(0) + 0.01 + 0.001 * rng.normal(size=(3, 800))
    interval = seeds_difference(ours, theirs)
    assert interval.mean == pytest.approx(ours.mean() - theirs.mean())
    assert seeds_difference(ours, theirs) == interval
    same = seeds_difference(ours[:1], ours[:1] - 0.02)
    assert (same.low, same.high) == pytest.approx((0.02, 0.02))


def test_runs_over_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        seeds_interval(np.ones(4))
    with pytest.raises(ValueError, match="same queries"):
        seeds_difference(np.ones((2, 3)), np.ones((2, 4)))

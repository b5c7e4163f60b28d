import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.pipelines.evaluation.click_metrics import auc, auc_difference, auc_interval, calibration, log_loss


def auc_by_pairs(scores: list[float], labels: list[int]) -> float:
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, is_a in zip(scores, labels, strict=True)
        if is_a
        for b, is_b in zip(scores, labels, strict=True)
        if not is_b
    ]
    return float(np.mean(pairs))


examples = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@settings(deadline=None)
@given(examples)
def test_auc_is_the_share_of_pairs_in_order_with_ties_at_half(rows: list[tuple[int, int]]) -> None:
    scores, labels = [float(score) for score, _ in rows], [label for _, label in rows]
    assert auc(scores, labels) == pytest.approx(auc_by_pairs(scores, labels), abs=1e-12)
    assert auc_interval(scores, labels).mean == pytest.approx(auc_by_pairs(scores, labels), abs=1e-12)


def test_the_difference_of_two_scorers_is_that_of_their_aucs() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    good, bad = labels + generator.normal(size=500), generator.normal(size=500).round(1)
    found = auc_difference(good, bad, labels)
    assert found.mean == pytest.approx(auc(good, labels) - auc(bad, labels), abs=1e-12)
    assert found.low > 0
    same = auc_difference(good, good, labels)
    assert (same.low, same.mean, same.high) == (0, 0, 0)


@pytest.mark.parametrize("is_difference", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says(is_difference: bool) -> None:
    generator, held, truth = np.random.default_rng(1), 0, 0.7602499  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for _ in range(400):
        labels = np.arange(300) % 3 == 0
        scores = labels + generator.normal(size=300)
        if is_difference:
            other = labels + generator.normal(size=300) + (scores - labels)
            other_truth = 0.6914625  # of a deviation of sqrt 2: Phi(1 / 2)
            interval, wanted = auc_difference(scores, other, labels), truth - other_truth
        else:
            interval, wanted = auc_interval(scores, labels), truth
        held += interval.low <= wanted <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def test_log_loss_of_a_known_case() -> None:
    assert log_loss([0.8, 0.4], [1, 0]) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)


def test_calibration_sees_level_and_shape() -> None:
    generator = np.random.default_rng(2)
    truth = generator.uniform(0.05, 0.6, 40_000)
    labels = generator.random(40_000) < truth
    right = calibration(truth, labels, "impression")
    assert right.ratio == pytest.approx(1, abs=0.02)
    assert right.error < 0.015
    double = calibration(np.minimum(2 * truth, 1), labels, "impression")
    assert double.ratio > 1.7
    assert double.error > 0.2
    flat = calibration(np.full(40_000, labels.mean()), labels, "impression")
    assert flat.ratio == pytest.approx(1)


def test_calibration_of_sampled_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no click probability"):
        calibration([0.1, 0.9], [0, 1], "sampled")


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "all of one kind"),
        ([0.1, float("nan")], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 2], "other values"),
        ([0.1], [0, 1], "shape"),
    ],
)
def test_bad_input_is_named(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auc(scores, labels)

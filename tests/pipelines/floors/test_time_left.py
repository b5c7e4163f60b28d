import pytest

from recsys.pipelines.floors.time_left import INVERSE, Part, TimeLeft, parts_of


def ease(l2: float) -> tuple[str, dict[str, float]]:
    return "ease", {"l2": l2}


def test_only_the_first_trial_of_an_l2_inverts() -> None:
    order = [ease(1.0), ease(1.0), ("item-knn", {}), ease(1.0), ease(3.0), ease(3.0)]
    asked = Part("ease", 50)
    assert parts_of(order, 50, None) == [Part(INVERSE), asked, Part("item-knn", 50), asked, Part(INVERSE), asked]
    assert parts_of(order[:2], 50, 1.0) == [asked, asked]
    assert parts_of(order[:2], 50, 3.0) == [Part(INVERSE), asked]


def test_trials_that_share_an_inverse_are_not_charged_for_it() -> None:
    left = TimeLeft()
    for part, seconds in ((Part(INVERSE), 100.0), (Part("ease", 50), 2.0), (Part("item-knn", 50), 1.0)):
        left.add(part, seconds)
    rest = parts_of([ease(1.0), ease(1.0), ease(3.0), ease(3.0), ("item-knn", {})], 50, 1.0)
    assert left.of(rest) == pytest.approx(2 + 2 + 100 + 2 + 1)


def test_a_trial_on_more_questions_takes_longer_and_an_unknown_family_costs_the_mean() -> None:
    left = TimeLeft()
    assert left.of([Part("blend", 10)]) == 0
    left.add(Part(INVERSE), 100.0)
    left.add(Part("popularity", 10), 1.0)
    left.add(Part("item-knn", 10), 3.0)
    assert left.of([Part("item-knn", 40)]) == pytest.approx(12)
    assert left.of([Part("blend", 10)]) == pytest.approx(2)

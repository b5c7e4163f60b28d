from typing import Any

import pytest

from recsys.pipelines.compare.advice import advise, by_simplicity
from recsys.pipelines.compare.comparison import Contender, size_text
from recsys.pipelines.compare.cost import Cost
from recsys.pipelines.evaluation.bootstrap import Interval


def around(mean: float, half: float = 0.01) -> Interval:
    return Interval(mean, mean - half, mean + half)


def contender(
    name: str, kind: Any, ndcg: float, to_best: Interval | None, to_floor: Interval | None = None, size: int = 1000
) -> Contender:
    cost = None if kind == "oracle" else Cost(parameters=size, size_bytes=4 * size, median_ms=1.0, p99_ms=2.0)
    return Contender(name, kind, around(ndcg), around(ndcg), to_best, to_floor, cost, 3.0)


def three(popularity: Interval, floor: Interval) -> list[Contender]:
    """sasrec is the best; how far the two floors are from it is up to the test."""
    return [
        contender("sasrec", "model", 0.30, None, around(-floor.mean)),
        contender("transition-knn", "floor", 0.30 + floor.mean, floor),
        contender("popularity", "floor", 0.30 + popularity.mean, popularity, around(popularity.mean - floor.mean)),
    ]


def test_the_best_is_taken_where_all_simpler_ones_are_worse() -> None:
    advice = advise(three(around(-0.2), around(-0.1)), "sasrec", "transition-knn", 5000)
    assert (advice.take, advice.is_telling) == ("sasrec", True)
    assert "nothing simpler comes within the noise" in advice.text[0]
    assert len(advice.text) == 1


def test_a_floor_within_the_noise_is_taken_and_the_distance_is_told() -> None:
    advice = advise(three(around(-0.2), around(-0.005)), "sasrec", "transition-knn", 5000)
    assert advice.take == "transition-knn"
    assert "-0.0050 [-0.0150, +0.0050] may be nothing" in advice.text[0]
    assert "4.0 kB, 1.00 ms an answer (p99 2.00), 3.00 s to count; sasrec costs" in advice.text[0]
    assert "sasrec can not be told from counting" in advice.text[1]


def test_an_interval_that_ends_at_nothing_is_still_within_the_noise() -> None:
    touching = Interval(-0.01, -0.02, 0.0)
    assert advise(three(around(-0.2), touching), "sasrec", "transition-knn", 5000).take == "transition-knn"
    apart = Interval(-0.01, -0.02, -1e-9)
    assert advise(three(around(-0.2), apart), "sasrec", "transition-knn", 5000).take == "sasrec"


def test_the_simplest_of_many_within_the_noise_is_taken() -> None:
    found = advise(three(around(-0.004), around(-0.002)), "sasrec", "transition-knn", 5000)
    assert found.take == "popularity"


def test_a_model_that_counting_beats_is_named() -> None:
    contenders = [
        contender("transition-knn", "floor", 0.3, None),
        contender("bert4rec", "model", 0.1, around(-0.2), around(-0.2)),
    ]
    advice = advise(contenders, "transition-knn", "transition-knn", 5000)
    assert advice.take == "transition-knn"
    assert advice.text[1].startswith("bert4rec is beaten by counting: -0.2000 [-0.2100, -0.1900] against transition")


def test_a_model_whose_interval_reaches_the_floor_is_not_called_beaten() -> None:
    contenders = [
        contender("transition-knn", "floor", 0.3, None),
        contender("sasrec", "model", 0.295, around(-0.005), around(-0.005)),
    ]
    advice = advise(contenders, "transition-knn", "transition-knn", 5000)
    assert advice.text[1].startswith("sasrec can not be told from counting")


@pytest.mark.parametrize(("num", "low"), [(199, -0.01), (5000, -0.07)])
def test_too_small_data_is_said_to_be_too_small(num: int, low: float) -> None:
    wide = Interval(-0.001, low, 0.05)
    advice = advise(three(wide, wide), "sasrec", "transition-knn", num)
    assert not advice.is_telling
    assert "too small to tell" in advice.text[-1]
    assert str(num) in advice.text[-1]


def test_from_so_many_questions_on_the_data_is_not_called_few() -> None:
    narrow = Interval(-0.001, -0.01, 0.008)
    assert advise(three(narrow, narrow), "sasrec", "transition-knn", 200).is_telling


def test_where_popularity_is_taken_the_history_is_said_to_be_of_no_effect() -> None:
    advice = advise(three(around(-0.004), around(-0.002)), "sasrec", "transition-knn", 5000)
    told = "nothing here can be told from popularity: no scorer uses the history to effect"
    assert advice.text[1] == told
    best = [
        contender("popularity", "floor", 0.3, None),
        contender("sasrec", "model", 0.2, around(-0.1), around(-0.1)),
    ]
    told = "nothing here is better than popularity: no scorer uses the history to effect"
    assert advise(best, "popularity", "popularity", 5000).text[1] == told
    assert "history" not in str(advise(three(around(-0.2), around(-0.005)), "sasrec", "transition-knn", 5000))


def test_simplicity_is_the_documented_order_and_models_follow_by_their_parameters() -> None:
    floors = ["ease", "other-floor", "popularity", "blend", "item-knn", "recent-popularity", "transition-knn"]
    contenders = [contender(name, "floor", 0.1, around(0.0)) for name in floors]
    contenders += [
        contender("big", "model", 0.1, around(0.0), size=10),
        contender("small", "model", 0.1, around(0.0), size=9),
        contender("oracle", "oracle", 0.9, None),
    ]
    assert [one.name for one in by_simplicity(contenders)] == [
        "popularity",
        "recent-popularity",
        "item-knn",
        "transition-knn",
        "blend",
        "ease",
        "other-floor",
        "small",
        "big",
    ]


def test_bytes_are_told_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 2_500_000, 4e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "4000.0 GB",
    ]

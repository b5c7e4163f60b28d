from pathlib import Path

import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import TransitionConfig, TransitionKNN
from recsys.pipelines.evaluation import evaluate
from recsys.pipelines.floors import TRANSITION_GRID, fit_floors, tune_transition_knn


def test_tuning_takes_the_best_setting_on_the_validation_part(circle: PreparedDataset) -> None:
    told: dict[str, float] = {}
    chosen = tune_transition_knn(circle, observe=told.__setitem__)
    assert list(told) == list(TRANSITION_GRID)
    assert chosen == TRANSITION_GRID[max(told, key=lambda name: told[name])]
    for name in ("markov", "long"):
        knn = TransitionKNN.fit(circle, TRANSITION_GRID[name])
        figures = evaluate({"knn": knn}, circle, split="valid").metrics["knn"]
        assert told[name] == pytest.approx(figures["ndcg@10"].mean)


def test_of_equal_settings_the_first_is_kept(circle: PreparedDataset) -> None:
    grid = {"a": TransitionConfig(window=1, query_last=1), "b": TransitionConfig(window=1, query_last=1, decay=0.5)}
    assert tune_transition_knn(circle, grid) == grid["a"]


def test_without_a_validation_part_the_first_setting_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 2 3\n2 3 2 1\n")
    config = PrepareConfig(split=SplitConfig(protocol="loo-novalid"))
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", config)
    assert tune_transition_knn(dataset) == next(iter(TRANSITION_GRID.values()))


def test_an_empty_grid_is_refused(circle: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="grid is empty"):
        tune_transition_knn(circle, {})


def test_the_floors_carry_their_names(circle: PreparedDataset) -> None:
    floors = fit_floors(circle)
    evaluation = evaluate(floors, circle)
    assert evaluation.floors == list(floors) == ["popularity", "transition-knn"]
    assert evaluation.best_floor == "transition-knn"
    assert evaluation.metrics["transition-knn"]["ndcg@10"].mean > 0.9  # on a circle the next item is certain

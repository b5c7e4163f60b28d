from pathlib import Path

import numpy as np
import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import TransitionConfig, TransitionKNN
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.evaluation.floors import TRANSITION_GRID, fit_floors, tune_transition_knn


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Steps of one on a circle of 30, but the last step, which tests, is random."""
    folder, rng = tmp_path_factory.mktemp("walks"), np.random.default_rng(0)
    starts, ends = rng.integers(0, 30, 200), rng.integers(0, 30, 200)
    rows = [[(start + n) % 30 for n in range(8)] + [end] for start, end in zip(starts, ends, strict=True)]
    (folder / "log.txt").write_text("".join(f"{u} {' '.join(map(str, row))}\n" for u, row in enumerate(rows)))
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def test_tuning_takes_the_best_setting_on_the_validation_part(walks: PreparedDataset) -> None:
    told: dict[str, float] = {}
    chosen = tune_transition_knn(walks, observe=told.__setitem__)
    assert list(told) == list(TRANSITION_GRID)
    assert chosen == TRANSITION_GRID[max(told, key=lambda name: told[name])]
    assert max(told.values()) > 0.9
    for name in ("markov", "long"):
        knn = TransitionKNN.fit(walks, TRANSITION_GRID[name])
        assert told[name] == pytest.approx(evaluate({"knn": knn}, walks, "valid").metrics["knn"]["ndcg@10"].mean)
        assert evaluate({"knn": knn}, walks, "test").metrics["knn"]["ndcg@10"].mean < 0.5


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

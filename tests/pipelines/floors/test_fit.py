import json
from pathlib import Path

import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import FLOOR_CLASSES, TransitionKNN
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.floors.families import NAMED
from recsys.pipelines.floors.fit import describe_floors, fit_floors
from recsys.pipelines.floors.ranking import rank_floor
from recsys.pipelines.floors.tune import tune_floors


def test_untuned_the_best_named_setting_on_the_validation_part_is_taken(walks: PreparedDataset) -> None:
    floors = fit_floors(walks)
    assert list(floors) == ["popularity", "transition-knn"]
    queries, figures = walks.queries("valid"), {}
    for name, config in NAMED.items():
        ranks = rank_floor(TransitionKNN.fit(walks, config), walks, queries)
        figures[name] = metrics_per_query(ranks, queries.target_offsets, (10,))["ndcg@10"].mean()
    knn = floors["transition-knn"]
    assert isinstance(knn, TransitionKNN)
    assert knn.config == NAMED[max(figures, key=lambda name: figures[name])]
    assert figures["markov"] > 0.9
    assert describe_floors(walks) == f"floors: 8 settings; tune them by: recsys floors {walks.path}"


def test_without_a_validation_part_the_first_setting_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 2 3\n2 3 2 1\n")
    config = PrepareConfig(split=SplitConfig(protocol="loo-novalid"))
    knn = fit_floors(prepare(tmp_path / "log.txt", tmp_path / "data", config))["transition-knn"]
    assert isinstance(knn, TransitionKNN)
    assert knn.config == next(iter(NAMED.values()))


def test_tuned_floors_are_fitted_with_their_settings_and_reach_the_told_figures(walks: PreparedDataset) -> None:
    tuned = tune_floors(walks, trials=8)
    floors, queries = fit_floors(walks), walks.queries("test")
    assert list(floors) == tuned.families
    for name, floor in floors.items():
        assert isinstance(floor, FLOOR_CLASSES)
        ranks = rank_floor(floor, walks, queries)
        ndcg = metrics_per_query(ranks, queries.target_offsets, (10,))["ndcg@10"].mean()
        assert tuned.test[name]["ndcg@10"]["mean"] == pytest.approx(ndcg, abs=1e-12)
    assert describe_floors(walks) == "floors: tuned, 8 trials"


def test_slow_ease_is_left_to_floors_json_and_the_line_says_so(
    walks: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tune_floors(walks, trials=8)
    assert tuned.best_family != "ease"
    monkeypatch.setattr("recsys.pipelines.floors.fit.EASE_ITEMS", 10)
    assert "ease" not in fit_floors(walks)
    assert describe_floors(walks) == (
        "floors: tuned, 8 trials; ease left out here for its time, its figures stand in floors.json"
    )


def test_floors_of_other_data_are_not_taken(walks: PreparedDataset, tmp_path: Path) -> None:
    tune_floors(walks, trials=2, only=["popularity", "recent-popularity"])
    config = PrepareConfig(split=SplitConfig(protocol="ratio"))
    other = prepare(tmp_path / "log.txt", tmp_path / "other", config)
    (other.path / "floors.json").write_bytes((walks.path / "floors.json").read_bytes())
    assert list(fit_floors(other)) == ["popularity", "transition-knn"]
    assert "tuned on other data or cuts" in describe_floors(other)
    assert list(fit_floors(walks)) == ["popularity", "recent-popularity"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "floors.json: damaged, no JSON object"),
        ("[]", "floors.json: damaged, no JSON object"),
        ("{}", r"floors.json: format \(None, None\), wanted \('recsys-floors', 1\)"),
        ('{"format": "recsys-floors", "format_version": 1}', "floors.json: damaged .*data_hash: missing"),
    ],
)
def test_a_damaged_file_is_refused_with_the_remedy(walks: PreparedDataset, text: str, message: str) -> None:
    (walks.path / "floors.json").write_text(text)
    with pytest.raises(DataError, match=f"{message}.*delete it, then tune again by: recsys floors"):
        fit_floors(walks)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["families"], ["popularity", "knn"], "families: "),
        (["families"], [], "families: "),
        (["best"], {}, "best, test and differences: wanted an entry for each of families"),
        (["best", "transition-knn"], {"settings": {}, "valid": "0.5"}, "best.transition-knn.valid: '0.5'"),
        (["best", "transition-knn", "settings"], None, "transition-knn: settings: None"),
        (["best", "transition-knn", "settings", "window"], "wide", "transition-knn: window='wide'"),
        (["best", "popularity", "settings"], {"power": 1}, "popularity: settings: .*wanted none"),
        (["test", "popularity"], {}, "popularity: hr@10: None"),
        (["test", "popularity", "ndcg@10"], {"mean": 0.1}, "popularity: ndcg@10: {'mean': 0.1}"),
        (["differences", "transition-knn", "mrr@10"], {}, "transition-knn: mrr@10: {}"),
        (["trials", 0], [], r"trials\[0\]=\[\]: wanted a mapping"),
        (["trials", 0, "stage"], 3, r"trials\[0\].stage: 3"),
        (["trials", 0, "seconds"], "1", r"trials\[0\].seconds: '1'"),
    ],
)
def test_valid_json_with_wrong_content_is_refused_with_the_remedy(
    walks: PreparedDataset, path: list[str | int], value: object, told: str
) -> None:
    tune_floors(walks, trials=2, only=["popularity", "transition-knn"])
    values = json.loads((walks.path / "floors.json").read_text())
    node = values
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    (walks.path / "floors.json").write_text(json.dumps(values))
    message = f"floors.json: damaged .*{told}.*delete it, then tune again by: recsys floors"
    with pytest.raises(DataError, match=message):
        fit_floors(walks)
    with pytest.raises(DataError, match=message):
        tune_floors(walks, trials=2)

import json
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import TransitionConfig, TransitionKNN
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.floors.tune import tune_floors
from recsys.pipelines.floors.tuned import TunedFloors, read_floors


def figures(tuned: TunedFloors) -> list[tuple[Any, ...]]:
    return [(t["stage"], t["family"], t["settings"], t["n"], t["ndcg@10"]) for t in tuned.trials]


def test_every_family_is_tuned_on_validation_and_told_on_test(walks: PreparedDataset) -> None:
    tuned = tune_floors(walks, trials=20)
    assert list(tuned.best) == tuned.families
    assert len(tuned.families) == 6
    assert tuned.random_trials == 20
    assert tuned.best["transition-knn"]["valid"] > 0.9  # the step before the last is certain
    assert tuned.test["transition-knn"]["ndcg@10"]["mean"] < 0.5  # the last one is random
    final = [trial for trial in tuned.trials if trial["stage"] == "final"]
    for family, best in tuned.best.items():
        assert best["valid"] == max(trial["ndcg@10"] for trial in final if trial["family"] == family)
    named = [trial["name"] for trial in tuned.trials if trial["stage"] == "random" and trial["name"]]
    knn = ["default", "popular", "rare", "markov", "short", "short, rare", "sharp", "long"]
    assert named == ["popularity", "default", *knn, "default", "paper"]
    assert read_floors(walks) == tuned
    assert tuned.is_of(walks)
    assert not (walks.path / "floors.partial.json").exists()


def test_the_figures_are_those_of_the_evaluation(walks: PreparedDataset) -> None:
    tuned = tune_floors(walks, trials=3, only=["popularity", "transition-knn"])
    knn = TransitionKNN.fit(walks, TransitionConfig(**tuned.best["transition-knn"]["settings"]))
    valid, test = (evaluate({"knn": knn}, walks, split) for split in ("valid", "test"))
    assert tuned.best["transition-knn"]["valid"] == pytest.approx(valid.metrics["knn"]["ndcg@10"].mean)
    assert tuned.test["transition-knn"]["hr@20"]["mean"] == pytest.approx(test.metrics["knn"]["hr@20"].mean)
    difference = tuned.differences["transition-knn"]["ndcg@10"]
    means = [tuned.test[family]["ndcg@10"]["mean"] for family in ("transition-knn", "popularity")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_what_test_targets_are_changes_no_choice(tmp_path: Path) -> None:
    chosen = []
    for number, last in enumerate(("7", "3")):
        (tmp_path / "log.txt").write_text("".join(f"{u} 1 2 3 4 5 6 7 {u % 5 + 1} {last}\n" for u in range(9)))
        config = PrepareConfig(split=SplitConfig(protocol="loo"))
        tuned = tune_floors(prepare(tmp_path / "log.txt", tmp_path / str(number), config), trials=10)
        chosen.append((tuned.best, figures(tuned)))
    assert chosen[0] == chosen[1]


def test_a_stopped_tuning_goes_on_and_ends_with_the_same_result(walks: PreparedDataset) -> None:
    class Stop(Exception):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["done"] == 17:
            raise Stop

    whole = tune_floors(walks, trials=12)
    (walks.path / "floors.json").unlink()
    with pytest.raises(Stop):
        tune_floors(walks, trials=12, observe=stop)
    assert not (walks.path / "floors.json").exists()
    partial = json.loads((walks.path / "floors.partial.json").read_text())
    assert len(partial["trials"]) == 17
    partial["trials"][0]["seconds"] = 1234.5
    (walks.path / "floors.partial.json").write_text(json.dumps(partial))
    resumed = tune_floors(walks, trials=12)
    assert 1234.5 in [trial["seconds"] for trial in resumed.trials]  # taken over, not run again
    assert (figures(resumed), resumed.best, resumed.test) == (figures(whole), whole.best, whole.test)


@pytest.mark.parametrize("torn", ["{", "[]", '{"trials": []}'])
def test_a_torn_or_foreign_partial_file_is_begun_anew(walks: PreparedDataset, torn: str) -> None:
    whole = tune_floors(walks, trials=3, only=["transition-knn"])
    (walks.path / "floors.json").unlink()
    (walks.path / "floors.partial.json").write_text(torn)
    assert figures(tune_floors(walks, trials=3, only=["transition-knn"])) == figures(whole)


def test_a_finished_tuning_is_not_run_again_and_more_trials_take_it_over(walks: PreparedDataset) -> None:
    first = tune_floors(walks, trials=6, only=["transition-knn", "item-knn"])
    again = tune_floors(walks, trials=6, only=["transition-knn", "item-knn"])
    assert again == first
    more = tune_floors(walks, trials=8, only=["transition-knn", "item-knn"])
    drawn = [[t for t in tuned.trials if t["stage"] == "random"] for tuned in (first, more)]
    assert drawn[1][: len(drawn[0])] == drawn[0]
    other = tune_floors(walks, trials=8, seed=1, only=["transition-knn", "item-knn"])
    assert figures(other) != figures(more)


def test_many_questions_are_sampled_and_the_finalists_meet_all(walks: PreparedDataset) -> None:
    tuned = tune_floors(walks, trials=5, only=["popularity", "transition-knn"], sample=40)
    asked = {trial["stage"]: trial["n"] for trial in tuned.trials}
    assert asked == {"random": 40, "local": 40, "final": 120}


def test_the_progress_ends_at_its_total(walks: PreparedDataset) -> None:
    told: list[dict[str, Any]] = []
    tuned = tune_floors(walks, trials=5, observe=told.append)
    assert [event["done"] for event in told] == list(range(1, len(tuned.trials) + 1))
    assert told[-1]["done"] == told[-1]["total"]
    assert told[-1]["seconds_left"] == 0
    assert all(event["event"] == "trial" and event["seconds_left"] >= 0 for event in told)


def test_ease_is_left_out_with_the_reason_where_it_cannot_be_fitted(
    walks: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recsys.models.floors.ease.MAX_ITEMS", 10)
    tuned = tune_floors(walks, trials=4)
    assert "ease" not in tuned.families
    assert "at most 10 items, here are 30" in tuned.left_out["ease"]
    assert tuned.random_trials == 4
    with pytest.raises(DataError, match="ease takes at most 10 items"):
        tune_floors(walks, trials=4, only=["ease"])


def test_data_without_a_validation_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 2 3\n2 3 2 1\n")
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))
    with pytest.raises(DataError, match="its valid part asks no question.*prepare it with another protocol"):
        tune_floors(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": 0}, "trials=0: wanted at least 1"),
        ({"only": ["knn"]}, "only=knn: no such floor; wanted one of popularity"),
        ({"only": ["blend"]}, "name these two as well"),
    ],
)
def test_what_cannot_be_tuned_is_refused(walks: PreparedDataset, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tune_floors(walks, **arguments)

import dataclasses
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


def test_the_number_of_shards_changes_no_figure_and_no_interval(walks: PreparedDataset) -> None:
    config = PrepareConfig(split=SplitConfig(protocol="loo"), shards=4)
    sharded = prepare(walks.path.parent / "log.txt", walks.path.parent / "sharded", config)
    assert (len(walks.shards), len(sharded.shards)) == (1, 4)
    one, four = (tune_floors(data, trials=3, only=["popularity", "transition-knn"]) for data in (walks, sharded))
    assert one.data_hash != four.data_hash
    assert (one.best, figures(one)) == (four.best, figures(four))
    assert (one.test, one.differences) == (four.test, four.differences)


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


GOOD = {"family": "popularity", "settings": {}, "n": 120, "ndcg@10": 0.5, "seconds": 0.1}


@pytest.mark.parametrize(
    ("torn", "told"),
    [
        ("{", ["no JSON object"]),
        ("[]", ["no JSON object"]),
        ('"text"', ["no JSON object"]),
        ('{"trials": []}', []),
        (None, ["trials: wanted a list"]),
        ({"a": 1}, ["trials: wanted a list"]),
        ([1], ["trials[0]: wanted an object"]),
        ([GOOD, {**GOOD, "family": "knn"}], ["trials[1].family: 'knn'"]),
        ([{**GOOD, "family": {}}], ["trials[0].family: {}"]),
        ([{**GOOD, "settings": []}], ["trials[0].settings: []"]),
        ([{**GOOD, "n": "5"}], ["trials[0].n: '5'"]),
        ([{**GOOD, "ndcg@10": "0.5"}], ["trials[0].ndcg@10: '0.5'"]),
        ([{**GOOD, "ndcg@10": float("nan")}], ["trials[0].ndcg@10: nan"]),
        ([{**GOOD, "seconds": None}], ["trials[0].seconds: None"]),
    ],
)
def test_a_damaged_or_foreign_partial_file_is_begun_anew_and_damage_is_told(
    walks: PreparedDataset, torn: Any, told: list[str]
) -> None:
    whole = tune_floors(walks, trials=3, only=["popularity"])
    (walks.path / "floors.json").unlink()
    ours = {"data_hash": walks.data_hash, "split_hash": walks.split_hash, "seed": 0, "trials": torn}
    partial = walks.path / "floors.partial.json"
    partial.write_text(torn if isinstance(torn, str) else json.dumps(ours))
    events: list[dict[str, Any]] = []
    assert figures(tune_floors(walks, trials=3, only=["popularity"], observe=events.append)) == figures(whole)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings == [f"{partial}: damaged ({fault}); begun anew" for fault in told]


@pytest.mark.parametrize("changed", ["data_hash", "split_hash", "seed"])
def test_figures_of_other_data_cuts_or_seed_are_not_taken_over(walks: PreparedDataset, changed: str) -> None:
    ours = {"data_hash": walks.data_hash, "split_hash": walks.split_hash, "seed": 0}
    wrong = {**GOOD, "ndcg@10": 0.987}
    partial = walks.path / "floors.partial.json"
    partial.write_text(json.dumps({**ours, "trials": [wrong]}))
    assert tune_floors(walks, trials=1, only=["popularity"]).best["popularity"]["valid"] == 0.987  # what is ours is
    (walks.path / "floors.json").unlink()
    partial.write_text(json.dumps({**ours, changed: 7, "trials": [wrong]}))
    assert tune_floors(walks, trials=1, only=["popularity"]).best["popularity"]["valid"] != 0.987


@pytest.mark.parametrize("changed", ["data_hash", "split_hash"])
def test_a_floors_json_of_other_data_gives_neither_figures_nor_families(walks: PreparedDataset, changed: str) -> None:
    tune_floors(walks, trials=1, only=["popularity", "recent-popularity"])
    path = walks.path / "floors.json"
    values = json.loads(path.read_text())
    for trial in values["trials"]:
        trial["ndcg@10"] = 0.987
    path.write_text(json.dumps({**values, changed: "other"}))
    tuned = tune_floors(walks, trials=1, only=["popularity"])
    assert tuned.families == ["popularity"]
    assert {trial["ndcg@10"] for trial in tuned.trials} != {0.987}
    assert 0.987 not in {trial["ndcg@10"] for trial in tuned.trials}


def test_the_best_of_the_sample_is_not_taken_but_the_best_of_all_questions(walks: PreparedDataset) -> None:
    tuned = tune_floors(walks, trials=12, only=["popularity", "recent-popularity"], sample=5)
    ours = [trial for trial in tuned.trials if trial["family"] == "recent-popularity"]
    sampled = max((t for t in ours if t["stage"] != "final"), key=lambda t: float(t["ndcg@10"]))
    final = max((t for t in ours if t["stage"] == "final"), key=lambda t: float(t["ndcg@10"]))
    assert sampled["ndcg@10"] > final["ndcg@10"]  # five questions flatter
    assert sampled["settings"] != final["settings"]
    assert tuned.best["recent-popularity"] == {"settings": final["settings"], "valid": final["ndcg@10"]}


def keys(tuned: TunedFloors) -> set[str]:
    return {
        json.dumps([t["stage"], t["family"], t["settings"], t["n"], t["seed"]], sort_keys=True) for t in tuned.trials
    }


def test_a_tuning_of_one_floor_keeps_the_others_and_every_trial(walks: PreparedDataset) -> None:
    whole = tune_floors(walks, trials=12)
    one = tune_floors(walks, trials=20, only=["recent-popularity"])
    assert one.families == whole.families
    assert keys(whole) < keys(one)
    for family in set(whole.families) - {"recent-popularity"}:
        assert (one.best[family], one.test[family]) == (whole.best[family], whole.test[family])
        assert one.differences.get(family) == whole.differences.get(family)
    assert one.best["recent-popularity"]["valid"] >= whole.best["recent-popularity"]["valid"]
    assert one.random_trials > whole.random_trials
    assert read_floors(walks) == one


def test_floors_tuned_one_after_another_stand_in_one_file_with_differences(walks: PreparedDataset) -> None:
    first = tune_floors(walks, trials=3, only=["recent-popularity"])
    assert first.differences == {}
    second = tune_floors(walks, trials=3, only=["popularity", "item-knn"])
    assert second.families == ["popularity", "recent-popularity", "item-knn"]
    assert second.test["recent-popularity"] == first.test["recent-popularity"]
    alone = tune_floors(walks, trials=3, only=["popularity", "recent-popularity", "item-knn"], folder=walks.path / "x")
    assert list(second.differences) == ["recent-popularity", "item-knn"]
    assert second.differences["recent-popularity"] == alone.differences["recent-popularity"]


def test_a_smaller_tuning_leaves_a_larger_one_as_it_is(walks: PreparedDataset) -> None:
    large = tune_floors(walks, trials=12)
    events: list[dict[str, Any]] = []
    assert tune_floors(walks, trials=6, observe=events.append) == large
    assert tune_floors(walks, trials=3, only=["blend"], observe=events.append) == large
    assert events == []
    assert read_floors(walks) == large


def test_another_seed_adds_its_trials_and_never_worsens_a_floor(walks: PreparedDataset) -> None:
    first = tune_floors(walks, trials=8, sample=40)
    other = tune_floors(walks, trials=8, sample=40, seed=1)
    assert keys(first) < keys(other)
    assert other.seed == 1
    for family, best in first.best.items():
        assert other.best[family]["valid"] >= best["valid"]
    alone = tune_floors(walks, trials=8, sample=40, seed=1, folder=walks.path / "alone")
    assert alone == other  # another folder takes the dataset's floors as they are
    again = tune_floors(walks, trials=8, sample=40)
    assert again == other  # the trials of seed 0 are still there


def test_named_settings_on_the_sample_of_another_seed_are_asked_anew(walks: PreparedDataset) -> None:
    tune_floors(walks, trials=4, only=["recent-popularity"], sample=40)
    second = tune_floors(walks, trials=4, only=["recent-popularity"], sample=40, seed=1)
    (walks.path / "floors.json").unlink()
    fresh = tune_floors(walks, trials=4, only=["recent-popularity"], sample=40, seed=1)
    of_seed = [t for t in second.trials if t["seed"] == 1]
    assert [(t["settings"], t["ndcg@10"]) for t in of_seed] == [(t["settings"], t["ndcg@10"]) for t in fresh.trials]


def test_another_folder_takes_the_datasets_floors_and_writes_only_there(walks: PreparedDataset, tmp_path: Path) -> None:
    place = tmp_path / "new" / "place"
    small = tune_floors(walks, trials=3, seed=4)
    before = (walks.path / "floors.json").read_bytes()
    assert tune_floors(walks, trials=3, folder=place) == small  # of whatever seed
    assert not place.exists()
    more = tune_floors(walks, trials=9, folder=place)
    assert keys(small) < keys(more)
    assert read_floors(walks, place) == more
    assert [file.name for file in place.iterdir()] == ["floors.json"]
    assert (walks.path / "floors.json").read_bytes() == before
    (place / "floors.json").write_text("{")
    with pytest.raises(DataError, match="damaged, no JSON object; delete it, then run this again"):
        tune_floors(walks, trials=9, folder=place)


def test_a_blend_brings_along_what_it_adds(walks: PreparedDataset) -> None:
    assert tune_floors(walks, trials=3, only=["blend"]).families == ["transition-knn", "item-knn", "blend"]


def test_data_without_a_test_question_is_refused_before_the_first_trial(
    walks: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = walks.queries("valid")  # `prepare` refuses such data, so its questions are taken away here
    none = dataclasses.replace(
        valid, **{n: getattr(valid, n)[:0] for n in ("shard", "start", "end", "user", "target_start", "target_end")}
    )
    monkeypatch.setattr(PreparedDataset, "queries", lambda _, split: {"valid": valid, "test": none}[split])
    events: list[dict[str, Any]] = []
    with pytest.raises(DataError, match="its test part asks no question"):
        tune_floors(walks, trials=3, observe=events.append)
    assert events == []
    assert not (walks.path / "floors.partial.json").exists()


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
    ],
)
def test_what_cannot_be_tuned_is_refused(walks: PreparedDataset, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tune_floors(walks, **arguments)

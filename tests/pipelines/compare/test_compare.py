import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.errors import DataError, InputError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.splits import SplitConfig
from recsys.files import sha256_of
from recsys.models.bundle import load_bundle
from recsys.models.floors import Popularity
from recsys.pipelines.compare.compare import compare
from recsys.pipelines.compare.comparison import Comparison
from recsys.pipelines.compare.config import CompareConfig
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.floors.tune import tune_floors
from recsys.pipelines.floors.tuned import FILE
from recsys.pipelines.training import Stopped

SMALL = {"d_model": 16, "num_layers": 1, "d_ff": 32}
MODELS = {"sasrec": SMALL, "bert4rec": SMALL}
TRAIN = {"threads": 1, "warmup_steps": 5, "lr": 0.01}
CONFIG = CompareConfig(minutes=0.005, trials=12, settings={**MODELS, "train": TRAIN})


@pytest.fixture(scope="module")
def data(circle: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """The circle in a folder of its own: tuned floors leave a file in it."""
    folder = tmp_path_factory.mktemp("compare") / "data"
    shutil.copytree(circle.path, folder)
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def place(data: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison, list[Any]]:
    """A comparison that was run once: its folder, what it found, and what it told."""
    out, events = tmp_path_factory.mktemp("compare") / "out", []  # type: ignore[var-annotated]  # of compare's events
    return out, compare(data, out, CONFIG, observe=events.append), events


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Users at random, of whom the last item is another than the ones before: no two parts have the same figures."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    lines = ["user_id,item_id,position"]
    for user in range(60):
        items = rng.permutation(12)[:6]
        lines += [f"u{user},i{item},{n}" for n, item in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(lines))
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


Place = tuple[Path, Comparison, list[Any]]
BRIEF = CompareConfig(models=("sasrec",), minutes=0.002, trials=12, settings={"sasrec": SMALL, "train": TRAIN})


def test_floors_and_models_stand_in_one_list_the_best_first(place: Place) -> None:
    _, found, _ = place
    names = [one.name for one in found.contenders]
    assert {"popularity", "transition-knn", "sasrec", "bert4rec"} <= set(names)
    figures = [one.ndcg.mean for one in found.contenders]
    assert figures == sorted(figures, reverse=True)
    assert found.best == names[0]
    assert found.of(found.best).to_best is None
    assert found.of(found.best_floor).kind == "floor"
    assert found.num_questions == 150
    assert found.protocol.startswith("loo/next/full-rank/exclude-seen")
    assert found.advice.take in names


def test_the_figures_are_those_of_the_evaluation(place: Place, data: PreparedDataset) -> None:
    _, found, _ = place
    model = found.of("sasrec")
    assert model.bundle is not None
    wanted = evaluate({"sasrec": load_bundle(Path(model.bundle)).model}, data)
    assert model.ndcg.mean == pytest.approx(wanted.metrics["sasrec"]["ndcg@10"].mean, abs=1e-12)
    assert model.hr.mean == pytest.approx(wanted.metrics["sasrec"]["hr@10"].mean, abs=1e-12)
    assert found.reachable == wanted.reachable


def test_a_difference_is_the_mean_difference_over_the_same_questions(place: Place) -> None:
    out, found, _ = place
    model, floor = found.of("sasrec"), found.of("popularity")
    values = [np.load(out / "steps" / f"{name}.npy")[0] for name in ("sasrec-0", "popularity")]
    assert model.ndcg.mean - floor.ndcg.mean == pytest.approx(float((values[0] - values[1]).mean()))
    for one in found.contenders:
        if one.name != found.best:
            assert one.to_best is not None
            assert one.to_best.low <= one.to_best.mean <= one.to_best.high <= 1


def test_every_contender_has_its_price(place: Place) -> None:
    out, found, _ = place
    for one in found.contenders:
        assert one.cost is not None
        assert 0 < one.cost.median_ms <= one.cost.p99_ms
        assert one.cost.size_bytes >= one.cost.parameters > 0
    model = found.of("sasrec")
    assert model.bundle is not None
    assert model.cost is not None
    bundle = load_bundle(Path(model.bundle))
    assert model.cost.parameters == sum(p.numel() for p in bundle.model.parameters())  # type: ignore[attr-defined]  # a module, too
    assert model.cost.size_bytes == sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file())
    assert bundle.path.is_relative_to(out)


def test_models_train_for_the_same_time(place: Place) -> None:
    _, found, _ = place
    for name in ("sasrec", "bert4rec"):
        seconds = found.of(name).training_s
        assert seconds is not None
        assert 0.3 <= seconds < 10
    assert found.settings["sasrec"]["train"] == found.settings["bert4rec"]["train"]


def test_what_is_left_of_the_whole_is_told(place: Place) -> None:
    _, _, events = place
    steps = [event for event in events if event.get("event") == "compare"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert [event["steps"] for event in steps] == [4] * 4
    assert [event["seconds_left"] for event in steps] == pytest.approx([0.6, 0.6, 0.3, 0.0])


def test_the_file_holds_what_was_found(place: Place) -> None:
    out, found, _ = place
    stored = json.loads((out / "compare.json").read_text())
    assert stored["advice"]["take"] == found.advice.take
    assert {one["name"]: one["ndcg"]["mean"] for one in stored["contenders"]} == {
        one.name: one.ndcg.mean for one in found.contenders
    }


def test_the_table_names_what_each_is_compared_with(place: Place) -> None:
    _, found, _ = place
    rows = found.table()
    assert [row["scorer"] for row in rows] == [one.name for one in found.contenders]
    assert f"- {found.best}" in rows[0]


def test_nothing_is_done_again_for_the_same_inputs(place: Place, data: PreparedDataset) -> None:
    out, found, _ = place
    events: list[Any] = []
    again = compare(data, out, CONFIG, observe=events.append)
    assert again == found
    assert {event["event"] for event in events} == {"compare"}
    assert {event["seconds_left"] for event in events} == {0}


def test_another_setting_trains_that_model_alone(place: Place, data: PreparedDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(place[0], out)
    config = CompareConfig(
        minutes=0.005, trials=12, settings={"train": TRAIN, "bert4rec": SMALL, "sasrec": {**SMALL, "dropout": 0.05}}
    )
    events: list[Any] = []
    found = compare(data, out, config, observe=events.append)
    assert {event["model"] for event in events if event.get("event") == "start"} == {"sasrec"}
    assert found.of("bert4rec").ndcg == place[1].of("bert4rec").ndcg


def test_an_interrupted_comparison_goes_on(data: PreparedDataset, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event.get("event") == "validation" and event["run"] == "bert4rec-0":
            os.kill(os.getpid(), signal.SIGINT)

    config = CompareConfig(minutes=0.01, trials=12, settings={**MODELS, "train": TRAIN})
    with pytest.raises(Stopped):
        compare(data, tmp_path / "out", config, observe=stop)
    assert not (tmp_path / "out" / "compare.json").exists()
    events: list[Any] = []
    compare(data, tmp_path / "out", config, observe=events.append)
    (start,) = [event for event in events if event.get("event") == "start"]
    assert (start["model"], start["resumed"]) == ("bert4rec", True)


def test_a_damaged_result_of_a_step_is_measured_again(place: Place, data: PreparedDataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(place[0], out)
    (out / "steps" / "sasrec-0.npy").write_bytes(b"torn")
    found = compare(data, out, CONFIG)
    assert found.of("sasrec").ndcg == place[1].of("sasrec").ndcg


def test_more_runs_of_a_model_count_together(data: PreparedDataset, tmp_path: Path) -> None:
    config = CompareConfig(
        models=("sasrec",), minutes=0.002, trials=12, seeds=2, settings={"sasrec": SMALL, "train": TRAIN}
    )
    found = compare(data, tmp_path / "out", config)
    values = [np.load(tmp_path / "out" / "steps" / f"sasrec-{seed}.npy")[0].mean() for seed in (0, 1)]
    assert found.of("sasrec").runs == 2
    weights = {sha256_of(file) for file in (tmp_path / "out" / "models").rglob("bundle/weights.safetensors")}
    assert len(weights) == 2, "two seeds are two models, even where they rank alike"
    assert found.of("sasrec").ndcg.mean == pytest.approx(float(np.mean(values)))


def test_data_without_a_validation_part_is_refused(circle_csv: Path, tmp_path: Path) -> None:
    config = PrepareConfig(split=SplitConfig(protocol="loo-novalid"))
    dataset = prepare(circle_csv, tmp_path / "data", config)
    with pytest.raises(DataError, match=r"validation part asks no question \(protocol loo-novalid\)"):
        compare(dataset, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_the_remedy_is_one_that_the_caller_has(circle_csv: Path, tmp_path: Path) -> None:
    own = prepare(circle_csv, tmp_path / "out" / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))
    with pytest.raises(DataError, match=r"prepare it with --set prepare\.split\.protocol=loo \(or time, or ratio\)"):
        compare(own, tmp_path / "out", CONFIG)
    with pytest.raises(DataError, match=r"prepare it with recsys prepare --protocol loo"):
        compare(own, tmp_path / "elsewhere", CONFIG)


def test_the_figures_are_of_the_test_part_and_of_this_log_alone(
    place: Place, noisy: PreparedDataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(place[0], out)  # what was found on another log stands there
    found = compare(noisy, out, BRIEF)
    popularity = {"popularity": Popularity.fit(noisy)}
    on_test, on_valid = (
        evaluate(popularity, noisy, split).metrics["popularity"]["ndcg@10"].mean for split in ("test", "valid")
    )
    assert abs(on_test - on_valid) > 1e-3
    assert found.of("popularity").ndcg.mean == pytest.approx(on_test, abs=1e-12)
    assert found.num_questions == 60


def test_the_difference_to_the_best_floor_is_what_the_scorer_has_more(place: Place) -> None:
    _, found, _ = place
    floor = found.of(found.best_floor).ndcg.mean
    told = {one.name: one.to_floor.mean for one in found.contenders if one.to_floor is not None}
    wanted = {one.name: one.ndcg.mean - floor for one in found.contenders if one.name != found.best_floor}
    assert told == pytest.approx(wanted)
    assert min(told.values()) < -0.01


def test_a_comparison_leaves_the_dataset_as_it_was(noisy: PreparedDataset, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(noisy.path, data)
    dataset = PreparedDataset.open(data)
    before = sorted(path.name for path in data.iterdir())
    compare(dataset, out, BRIEF)
    assert sorted(path.name for path in data.iterdir()) == before
    assert json.loads((out / FILE).read_text())["random_trials"] == 12


@pytest.mark.parametrize(("trials", "is_taken"), [(12, True), (13, True), (11, False)])
def test_tuned_floors_of_the_dataset_are_taken_where_they_are_as_thorough(
    noisy: PreparedDataset, tmp_path: Path, trials: int, is_taken: bool
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(noisy.path, data)
    dataset = PreparedDataset.open(data)
    tune_floors(dataset, trials, seed=5)
    before, events = (data / FILE).read_bytes(), []  # type: ignore[var-annotated]  # of compare's events
    found = compare(dataset, out, BRIEF, observe=events.append)
    assert (data / FILE).read_bytes() == before
    assert any(event.get("event") == "trial" for event in events) is not is_taken
    assert (out / FILE).exists() is not is_taken
    assert (f"taken from {data / FILE}" in found.floors_note) is is_taken


def test_a_place_that_cannot_be_written_is_told_before_anything_is_tuned(
    noisy: PreparedDataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    events: list[Any] = []
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match="cannot be written .*; name another place"):
            compare(noisy, out, BRIEF, observe=events.append)
    assert events == []
    assert not (noisy.path / FILE).exists()


def test_too_few_users_are_refused(tmp_path: Path) -> None:
    lines = ["user_id,item_id,position", *(f"u{u},i{(u + n) % 7},{n}" for u in range(19) for n in range(5))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig())
    with pytest.raises(DataError, match="only 19 users ask a question in the test part; wanted at least 20"):
        compare(dataset, tmp_path / "out", CONFIG)
